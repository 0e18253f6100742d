//! Waits for descriptors, and wakes waiting threads.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

/// A flag that is set once and wakes every thread in [`wait_readable`], now and later.
#[derive(Debug)]
pub struct StopFlag(OwnedFd);

impl StopFlag {
    /// A flag that is not set.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(rustix::event::eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Sets the flag for good.
    pub fn set(&self) {
        // It fails only at the limit of the counter, when the flag is set already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for StopFlag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of the descriptors is readable or has an error, or until the timeout.
/// Returns for each whether to read from it. An interrupted wait returns all false.
///
/// # Errors
/// The kernel's.
pub fn wait_readable<const N: usize>(
    descriptors: [BorrowedFd<'_>; N],
    timeout: Option<std::time::Duration>,
) -> io::Result<[bool; N]> {
    let mut polled = descriptors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let timeout = timeout.map(|time| Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    });
    match rustix::event::poll(&mut polled, timeout.as_ref()) {
        Ok(_) => Ok(polled.each_ref().map(|fd| !fd.revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok([false; N]),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the descriptor is writable, or until the timeout. Returns whether it is.
///
/// # Errors
/// The kernel's.
pub fn wait_writable(descriptor: BorrowedFd<'_>, timeout: std::time::Duration) -> io::Result<bool> {
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::OUT)];
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    match rustix::event::poll(&mut polled, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_set_flag_wakes_every_wait() {
        let flag = StopFlag::new().unwrap();
        let idle = StopFlag::new().unwrap();
        let short = Some(Duration::from_millis(1));
        assert_eq!(
            wait_readable([flag.as_fd(), idle.as_fd()], short).unwrap(),
            [false, false]
        );
        flag.set();
        for _ in 0..2 {
            assert_eq!(
                wait_readable([flag.as_fd(), idle.as_fd()], None).unwrap(),
                [true, false]
            );
        }
    }
}
