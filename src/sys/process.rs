//! Child processes that do not outlive their parent.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the kernel send SIGTERM to the child when the thread that started it ends, for whatever
/// reason. Start it from a thread that lives long enough.
#[must_use]
pub fn dies_with_parent(mut command: Command) -> Command {
    let parent = std::process::id();
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls
    // are allowed: it makes two system calls, and builds its errors without allocating.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 {
                return Err(io::Error::last_os_error());
            }
            // If the parent ended before the call, no signal will be sent.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    command
}
