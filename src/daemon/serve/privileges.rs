//! The privileges that the daemon keeps. For those of the packet threads see
//! [`crate::sys::privileges::PacketSyscalls`].

use crate::sys::privileges::{self, Capability, PrivilegeError};

/// Needed as long as the daemon runs: for devices, routes, rules and sockets (`CAP_NET_ADMIN`;
/// iptables wants `CAP_NET_RAW`), for a health or tunnel port below 1024, and, if it runs as root,
/// for files of other users, such as etcd's client key or a shared lease directory.
const SERVING: [Capability; 4] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_DAC_OVERRIDE,
];

/// During a start, iptables may have to load its kernel modules, and finding the holder of the
/// tunnel's port takes access to other processes.
const STARTING: [Capability; 6] = [
    SERVING[0],
    SERVING[1],
    SERVING[2],
    SERVING[3],
    Capability::CAP_SYS_MODULE,
    Capability::CAP_SYS_PTRACE,
];

/// Drops what no part of the daemon needs. Call this before there is a second thread.
pub(crate) fn starting() {
    // Child processes of root inherit what this process has, and need no more.
    warn_on_error(privileges::set_no_new_privileges());
    warn_on_error(privileges::drop_capabilities_except(&STARTING));
}

/// Drops what only a start needs. Call this in the main thread once the daemon serves, and in each
/// helper thread first: they start no programs.
pub(crate) fn serving() {
    warn_on_error(privileges::drop_capabilities_except(&SERVING));
}

fn warn_on_error(result: Result<(), PrivilegeError>) {
    if let Err(error) = result {
        tracing::warn!(event = "not_confined", %error, "continuing with more privileges than needed");
    }
}
