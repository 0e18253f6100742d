//! Creates network namespaces, and runs code and programs in them.
//!
//! They are anonymous: nothing under `/run/netns` refers to them. The
//! kernel frees a namespace and its devices when the last descriptor, thread and socket in it
//! is gone (`namespaces(7)`), so a crash leaves nothing behind.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::thread;

/// The namespace of the calling thread, which may differ from that of the process.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// A handle to a network namespace. Clones refer to the same one.
#[derive(Debug, Clone)]
pub struct Namespace {
    fd: Arc<OwnedFd>,
}

impl Namespace {
    /// Creates a namespace with nothing in it but a `lo` that is down.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_SYS_ADMIN` in the user namespace (see [`unshare_user`]),
    /// `ENOSPC` at the limit of `user.max_net_namespaces`.
    pub fn new() -> io::Result<Self> {
        let worker = thread::Builder::new().name("netns-new".into()).spawn(|| {
            unshare(libc::CLONE_NEWNET)?;
            Self::current()
        })?;
        worker.join().unwrap_or_else(|_| {
            Err(io::Error::other(
                "the thread that creates namespaces panicked",
            ))
        })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// If `/proc` is not mounted, or on kernels before 3.17.
    pub fn current() -> io::Result<Self> {
        let file = File::open(OWN_NAMESPACE)?;
        Ok(Self {
            fd: Arc::new(file.into()),
        })
    }

    /// Runs `work` on a new thread in the namespace and waits for it.
    ///
    /// Sockets and devices that it opens belong to the namespace for good. A panic of `work`
    /// is passed on to the caller.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started or may not enter; `work` has not run then.
    pub fn run<T, F>(&self, work: F) -> io::Result<T>
    where
        F: FnOnce() -> T + Send,
        T: Send,
    {
        thread::scope(|scope| {
            let worker = thread::Builder::new()
                .name("netns-run".into())
                .spawn_scoped(scope, || {
                    self.enter_on_this_thread()?;
                    Ok(work())
                })?;
            match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// As [`Self::run`], for work that may fail itself.
    ///
    /// # Errors
    ///
    /// That of the thread, or that of `work`.
    pub fn try_run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        self.run(work)?
    }

    /// Moves the calling thread into the namespace for good. Other threads are not affected.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_SYS_ADMIN`.
    pub fn enter_on_this_thread(&self) -> io::Result<()> {
        enter(self.fd.as_raw_fd())
    }

    /// Makes `command` start its program in the namespace.
    #[must_use]
    pub fn command(&self, mut command: Command) -> Command {
        let fd = Arc::clone(&self.fd);
        // SAFETY: the closure runs between fork and exec, where only async-signal-safe
        // calls are allowed: it makes one system call, and builds its error without
        // allocating. The descriptor lives as long as the command, which owns a clone.
        unsafe {
            command.pre_exec(move || enter(fd.as_raw_fd()));
        }
        command
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes the process root of a new user namespace with a new network namespace, so that the
/// rest of this module works without root.
///
/// Call it before any thread is started. The caller's user and group appear as 0 inside
/// (`user_namespaces(7)`); outside it gains no rights.
///
/// # Errors
///
/// `EINVAL` if the process has more than one thread, `EPERM` if user namespaces are disabled
/// (`kernel.unprivileged_userns_clone`,
/// `kernel.apparmor_restrict_unprivileged_userns`), `ENOSPC` at `user.max_user_namespaces`.
pub fn unshare_user() -> io::Result<()> {
    // SAFETY: both calls take no arguments, touch no memory and cannot fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)?;
    // The kernel refuses an unprivileged group map unless setgroups is denied.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

fn enter(fd: RawFd) -> io::Result<()> {
    // SAFETY: no memory is passed. The kernel refuses a descriptor of another kind with EBADF
    // or EINVAL.
    check(unsafe { libc::setns(fd, libc::CLONE_NEWNET) })
}

fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is passed. The flags used here change only namespaces, not the sharing
    // of memory or descriptors.
    check(unsafe { libc::unshare(flags) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A new namespace, or `None` with the reason printed where that is not allowed.
    fn namespace() -> Option<Namespace> {
        Namespace::new()
            .inspect_err(|error| eprintln!("skipped: no network namespace: {error}"))
            .ok()
    }

    fn devices() -> Vec<String> {
        let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let names = table
            .lines()
            .skip(2)
            .filter_map(|line| line.split(':').next());
        names.map(|name| name.trim().to_owned()).collect()
    }

    fn identity() -> std::path::PathBuf {
        fs::read_link(OWN_NAMESPACE).unwrap()
    }

    #[test]
    fn a_new_namespace_is_empty_and_apart() {
        let Some(inside) = namespace() else { return };
        let here = identity();
        assert_eq!(inside.run(devices).unwrap(), ["lo"]);
        assert_ne!(inside.run(identity).unwrap(), here);
        assert_eq!(identity(), here, "the caller stays where it was");
    }

    #[test]
    fn loopback_of_a_new_namespace_is_down() {
        let Some(inside) = namespace() else { return };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(TcpStream::connect(address).is_ok());
        assert!(inside.run(|| TcpStream::connect(address)).unwrap().is_err());
    }

    #[test]
    fn programs_start_inside() {
        let Some(inside) = namespace() else { return };
        let mut command = Command::new("readlink");
        command.arg("/proc/self/ns/net");
        let output = inside.command(command).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let expected = inside.run(identity).unwrap();
        assert_eq!(printed.trim(), expected.to_str().unwrap());
    }

    #[test]
    fn a_panic_inside_reaches_the_caller() {
        let Some(inside) = namespace() else { return };
        let outcome = std::panic::catch_unwind(|| inside.run(|| panic!("inside")));
        assert!(outcome.is_err());
    }
}
