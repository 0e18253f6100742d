//! Which threads receive signals.

use std::io;
use std::mem::MaybeUninit;

/// Faults of the thread itself. If they were blocked, the kernel would kill the process without a
/// message.
const FAULTS: [libc::c_int; 6] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
];

/// Blocks signals to the process on the calling thread, so that other threads receive them. A
/// handler may need system calls that a confined thread must not make.
pub(crate) fn block_process_signals() -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigfillset` initializes the whole set, which the later calls change or read;
    // the old mask is not requested.
    let failed = unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for fault in FAULTS {
            libc::sigdelset(set.as_mut_ptr(), fault);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut())
    };
    match failed {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_signals_but_faults_are_blocked() {
        let blocked = std::thread::spawn(|| {
            block_process_signals().unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
            u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
        })
        .join()
        .unwrap();
        let is_blocked = |signal: libc::c_int| blocked & 1 << (signal - 1) != 0;
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD] {
            assert!(is_blocked(signal), "{signal}");
        }
        for signal in FAULTS {
            assert!(!is_blocked(signal), "{signal}");
        }
    }
}
