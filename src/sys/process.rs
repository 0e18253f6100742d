//! Child processes that do not outlive us, and threads that are held.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the kernel kill the child with SIGTERM when the thread that starts it ends, in
/// whatever way. Start it from a thread that lives long enough.
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
            // The parent may have ended before the call: nobody would send the signal then.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    command
}

/// Does `work` while a thread of another process stands still, as one that hangs would; the
/// others go on. For tests, as root or on a child.
///
/// # Errors
/// When the thread may not be traced, or is gone.
pub fn while_stopped<T>(thread: u32, work: impl FnOnce() -> T) -> io::Result<T> {
    let thread = thread as libc::pid_t;
    // Each request is this thread's, whom the kernel takes for the tracer; if it ends, the
    // other thread goes on.
    trace(libc::PTRACE_SEIZE, thread)?;
    let _held = Held(thread);
    trace(libc::PTRACE_INTERRUPT, thread)?;
    let mut status = 0;
    // SAFETY: `status` lives through the call, which writes one int.
    if unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if !libc::WIFSTOPPED(status) {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(work())
}

/// A thread that is traced. It goes on when this value is dropped, by a panic too: nobody
/// could wait for the end of its process otherwise.
struct Held(libc::pid_t);

impl Drop for Held {
    fn drop(&mut self) {
        // It may be gone.
        let _ = trace(libc::PTRACE_DETACH, self.0);
    }
}

/// As the C library has it.
#[cfg(target_env = "gnu")]
type Request = libc::c_uint;
#[cfg(not(target_env = "gnu"))]
type Request = libc::c_int;

fn trace(request: Request, thread: libc::pid_t) -> io::Result<()> {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: none of the requests above reads or writes through its last two arguments.
    match unsafe { libc::ptrace(request as _, thread, nothing, nothing) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
