//! Which privileges the daemon keeps. What the packet threads keep is
//! [`crate::sys::privileges::PacketSyscalls`].

use crate::sys::privileges::{self, Capability, PrivilegeError};

/// What reconciling needs as long as the daemon lives: devices, routes, rules and sockets
/// (`CAP_NET_ADMIN`; `CAP_NET_RAW` is iptables'), a health or tunnel port below 1024, and, of
/// a daemon that runs as root, files that are another user's: etcd's client key, a shared
/// lease directory.
const SERVING: [Capability; 4] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_DAC_OVERRIDE,
];

/// Until the rules are in place, their programs may have to load the kernel modules of
/// iptables; and who holds the tunnel's port can be named only by looking into other
/// processes.
const STARTING: [Capability; 6] = [
    SERVING[0],
    SERVING[1],
    SERVING[2],
    SERVING[3],
    Capability::CAP_SYS_MODULE,
    Capability::CAP_SYS_PTRACE,
];

/// Gives up what no part of the daemon needs. Called before there is a second thread.
pub fn starting() {
    // Programs that root starts need no new privileges; they get what this process has.
    told(privileges::set_no_new_privileges());
    told(privileges::drop_capabilities_except(&STARTING));
}

/// Gives up what only a start needs; for the main thread when the daemon serves, and for
/// helper threads from their beginning, which start no programs.
pub fn serving() {
    told(privileges::drop_capabilities_except(&SERVING));
}

fn told(done: Result<(), PrivilegeError>) {
    if let Err(error) = done {
        tracing::warn!(event = "not_confined", %error, "going on with more privileges than needed");
    }
}
