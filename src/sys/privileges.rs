//! Drops privileges of the process, and nearly all of its packet threads.
//!
//! Capabilities and seccomp filters belong to a thread (`capabilities(7)`, `seccomp(2)`).
//! Threads that it starts later inherit the restrictions.

use std::collections::{BTreeMap, HashSet};
use std::io;

use caps::CapSet;
pub use caps::Capability;
use caps::errors::CapsError;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule};

/// Why privileges could not be dropped.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// `capset` was refused.
    #[error("cannot drop capabilities: {0}")]
    Capabilities(#[from] CapsError),
    /// There is no filter for this CPU, or the kernel refused it.
    #[error("cannot filter system calls: {0}")]
    Filter(String),
    /// `PR_SET_NO_NEW_PRIVS` (Linux 3.5) was refused.
    #[error("cannot set no_new_privs: {0}")]
    NewPrivileges(io::Error),
}

/// From now on, programs that this thread or its descendants execute gain no privileges:
/// set-user-ID bits and file capabilities have no effect.
///
/// # Errors
/// On kernels before 3.5.
pub fn set_no_new_privileges() -> Result<(), PrivilegeError> {
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| PrivilegeError::NewPrivileges(error.into()))
}

/// Whether this thread is known to lack a capability.
#[must_use]
pub fn lacks(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).is_ok_and(|held| !held)
}

/// Drops all capabilities of this thread except `kept`, and adds none. Kept ones stay
/// inheritable if they were, so that programs started by users other than root get them.
///
/// # Errors
/// If the kernel or a seccomp filter refuses.
pub fn drop_capabilities_except(kept: &[Capability]) -> Result<(), PrivilegeError> {
    // The effective set must never exceed the permitted one.
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        let mut held: HashSet<Capability> = caps::read(None, set)?;
        held.retain(|capability| kept.contains(capability));
        caps::set(None, set, &held)?;
    }
    Ok(())
}

/// A seccomp filter with the system calls of a packet thread. All others fail with `EPERM`.
///
/// They fail instead of killing the process, so that a libc that needs another call does not
/// cost the host its network. An attacker who controls a packet thread gains nothing either
/// way: no file, no socket, no program, no executable memory.
#[derive(Debug, Clone)]
pub struct PacketSyscalls(BpfProgram);

impl PacketSyscalls {
    /// Compiles the filter for this CPU.
    ///
    /// # Errors
    /// On CPUs other than x86-64, aarch64 and riscv64.
    pub fn compile() -> Result<Self, PrivilegeError> {
        let failed = |error: seccompiler::BackendError| PrivilegeError::Filter(error.to_string());
        let arch = std::env::consts::ARCH.try_into().map_err(failed)?;
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let filter = SeccompFilter::new(calls::allowed()?, refuse, SeccompAction::Allow, arch);
        Ok(Self(filter.and_then(TryInto::try_into).map_err(failed)?))
    }

    /// Drops every capability of the calling thread, and every system call that the packet loop
    /// does not need. Sockets and queues must be open before.
    ///
    /// # Errors
    /// Kernels without `CONFIG_SECCOMP_FILTER` refuse the filter. The capabilities are dropped
    /// nonetheless.
    pub(crate) fn confine_thread(&self) -> Result<(), PrivilegeError> {
        drop_capabilities_except(&[])?;
        seccompiler::apply_filter(&self.0)
            .map_err(|error| PrivilegeError::Filter(error.to_string()))
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

#[cfg(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
))]
mod calls {
    use seccompiler::{
        SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition, SeccompRule,
    };

    use super::{PrivilegeError, Rules};

    /// Calls that are allowed whatever their arguments.
    const PLAIN: &[i64] = &[
        // Packets. `write` also serves the log, and wakes the control side.
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_recvmmsg,
        libc::SYS_sendmmsg,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        // Waiting.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_sched_yield,
        libc::SYS_futex,
        libc::SYS_restart_syscall,
        // Clocks without vDSO.
        libc::SYS_clock_gettime,
        libc::SYS_gettimeofday,
        // `PathMtuSocket`: the next destination.
        libc::SYS_connect,
        // The allocator and hash maps.
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_sched_getaffinity,
        libc::SYS_getrandom,
        // The end of a thread, regular or by a panic.
        libc::SYS_close,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_tgkill,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];

    /// Number of the argument with the protection bits, of `mmap` and `mprotect` alike.
    const PROTECTION: u8 = 2;

    pub(super) fn allowed() -> Result<Rules, PrivilegeError> {
        let mut rules: Rules = PLAIN.iter().map(|call| (*call, Vec::new())).collect();
        let not_executable = || rule(&[(PROTECTION, Op::MaskedEq(libc::PROT_EXEC as u64), 0)]);
        rules.insert(libc::SYS_mmap, vec![not_executable()?]);
        rules.insert(libc::SYS_mprotect, vec![not_executable()?]);
        let path_mtu = rule(&[
            (1, Op::Eq, libc::IPPROTO_IP as u64),
            (2, Op::Eq, libc::IP_MTU as u64),
        ])?;
        rules.insert(libc::SYS_getsockopt, vec![path_mtu]);
        // The standard library's check before it closes a descriptor, in debug builds.
        let is_open = rule(&[(1, Op::Eq, libc::F_GETFD as u64)])?;
        rules.insert(libc::SYS_fcntl, vec![is_open]);
        Ok(rules)
    }

    fn rule(conditions: &[(u8, Op, u64)]) -> Result<SeccompRule, PrivilegeError> {
        let conditions = conditions
            .iter()
            .map(|(argument, op, value)| Condition::new(*argument, Len::Dword, op.clone(), *value))
            .collect::<Result<_, _>>();
        conditions
            .and_then(SeccompRule::new)
            .map_err(|error| PrivilegeError::Filter(error.to_string()))
    }
}

#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
)))]
mod calls {
    use super::{PrivilegeError, Rules};

    pub(super) fn allowed() -> Result<Rules, PrivilegeError> {
        Err(PrivilegeError::Filter(format!(
            "the system calls of {} are not known",
            std::env::consts::ARCH
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs on a thread of its own, because dropped privileges do not come back.
    fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(work).join().unwrap()
    }

    #[test]
    fn dropped_capabilities_are_gone_from_every_set() {
        on_a_thread(|| {
            let before = caps::read(None, CapSet::Permitted).unwrap();
            drop_capabilities_except(&[Capability::CAP_NET_ADMIN]).unwrap();
            for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
                let left = caps::read(None, set).unwrap();
                assert!(left.is_subset(&before), "nothing is gained: {left:?}");
                assert!(
                    left.iter().all(|one| *one == Capability::CAP_NET_ADMIN),
                    "{set:?}: {left:?}"
                );
            }
            drop_capabilities_except(&[]).unwrap();
            assert!(caps::read(None, CapSet::Permitted).unwrap().is_empty());
        });
    }

    #[test]
    fn a_confined_thread_can_do_nothing_but_move_packets() {
        use crate::sys::udp::{PathMtuSocket, UdpSocket};
        use std::net::{Ipv4Addr, SocketAddrV4};
        let path_mtu = PathMtuSocket::new(Ipv4Addr::LOCALHOST).unwrap();
        let calls = PacketSyscalls::compile().unwrap();
        on_a_thread(move || {
            if let Err(error) = calls.confine_thread() {
                println!("SKIPPED: {error}");
                return;
            }
            let refused = |result: io::Error| result.raw_os_error() == Some(libc::EPERM);
            let open = std::fs::read("/etc/hostname").unwrap_err();
            assert!(refused(open), "files");
            let socket = UdpSocket::sender(Ipv4Addr::LOCALHOST).unwrap_err();
            assert!(refused(socket), "sockets");
            let program = std::process::Command::new("true").status().unwrap_err();
            assert!(refused(program), "programs");
            let destination = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);
            assert!(path_mtu.get(destination).unwrap() > 1500, "path MTU");
            // More memory than the allocator has in reserve.
            assert_eq!(
                vec![1u8; 4 << 20]
                    .iter()
                    .map(|one| *one as usize)
                    .sum::<usize>(),
                4 << 20
            );
        });
    }
}
