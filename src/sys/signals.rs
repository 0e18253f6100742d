//! Which thread is given a signal.

use std::io;
use std::mem::MaybeUninit;

/// What a thread does to itself: blocked, it would be killed without a word.
const FAULTS: [libc::c_int; 6] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
];

/// From now on the calling thread is given no signal that is for the process: others take it.
/// A handler may need what a confined thread must not do, and then the signal would be lost.
///
/// # Errors
/// What the system says; it has no reason to.
pub fn block_process_signals() -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigfillset` initialises the whole set, which the calls behind it change or
    // read; the old mask is not asked for.
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
    fn a_thread_that_leaves_them_to_others_blocks_all_but_its_faults() {
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
