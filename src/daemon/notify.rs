//! What systemd is told (`sd_notify(3)`); nothing happens where nobody listens.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

static LAST_STATUS: Mutex<String> = Mutex::new(String::new());
/// READY could not be said, and is to be said with whatever comes next.
static READY_IS_OWED: AtomicBool = AtomicBool::new(false);

/// Everything is in place: lease, device, routes and subnet file.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// One line for `systemctl status`, and for `uvxlan status` while starting.
pub fn status(text: &str) {
    let mut last = LAST_STATUS.lock().unwrap_or_else(PoisonError::into_inner);
    text.clone_into(&mut last);
    send(&[NotifyState::Status(text)]);
}

/// What was said last.
#[must_use]
pub fn last_status() -> String {
    let last = LAST_STATUS.lock().unwrap_or_else(PoisonError::into_inner);
    last.clone()
}

/// The start takes this much longer: the datastore is away. Means nothing once READY.
pub fn extend_start(by: Duration) {
    let microseconds = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
    send(&[NotifyState::ExtendTimeoutUsec(microseconds)]);
}

/// The daemon is on its way out.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Says so, without waiting: a service manager that does not read must not stop who feeds the
/// routes. What is left out is said anew by the next status or sign of life; READY goes with it.
fn send(state: &[NotifyState<'_>]) {
    let Some(to) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let mut text: Vec<_> = state.iter().map(ToString::to_string).collect();
    let mut is_ready = matches!(state, [NotifyState::Ready, ..]);
    if READY_IS_OWED.swap(false, Ordering::Relaxed) && !is_ready {
        is_ready = true;
        text.push(NotifyState::Ready.to_string());
    }
    match send_to(&to, &text.join("\n")) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            READY_IS_OWED.store(is_ready, Ordering::Relaxed);
            tracing::warn!(event = "notify_failed", "the service manager does not read");
        }
        Err(error) => {
            tracing::warn!(event = "notify_failed", %error, "cannot tell the service manager");
        }
        Ok(_) => {}
    }
}

fn send_to(to: &OsStr, text: &str) -> io::Result<usize> {
    let address = match to.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(to)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(text.as_bytes(), &address)
}

/// Tells the service manager's watchdog that packets are still being moved: by the workers'
/// own progress, not by a timer.
#[derive(Debug)]
pub struct Watchdog {
    /// What `WatchdogSec=` says.
    limit: Option<Duration>,
    progress: Vec<u64>,
    /// When that was.
    taken: Option<Instant>,
    complained: Option<Instant>,
}

/// Least time between two looks that can be compared: longer than the second in which an
/// idle worker makes a turn, shorter than the pause between regular looks.
const SPAN: Duration = Duration::from_millis(1500);

impl Watchdog {
    /// The watchdog that this process was started under, if any.
    #[must_use]
    pub fn of_environment() -> Self {
        Self {
            limit: sd_notify::watchdog_enabled(),
            progress: Vec::new(),
            taken: None,
            complained: None,
        }
    }

    /// Takes the number of turns that each worker has made. An idle worker makes one a
    /// second, so that one that made none since the last look hangs; of looks that follow
    /// each other closer than that, the later ones say nothing.
    pub fn feed(&mut self, progress: &[u64], now: Instant) {
        if self.taken.is_some_and(|taken| now - taken < SPAN) {
            return;
        }
        self.taken = Some(now);
        let moved = self.has_moved(progress);
        self.progress = progress.to_vec();
        if moved {
            self.complained = None;
            if self.limit.is_some() {
                send(&[NotifyState::Watchdog]);
            }
        } else if self.complained.is_none() {
            self.complained = Some(now);
            tracing::error!(
                event = "worker_stuck",
                "a packet thread made no progress since the last look"
            );
        }
    }

    fn has_moved(&self, progress: &[u64]) -> bool {
        self.progress.len() != progress.len()
            || self
                .progress
                .iter()
                .zip(progress)
                .all(|(old, new)| old != new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_read_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let full = (0..10_000).map(|_| send_to(path.as_os_str(), "WATCHDOG=1"));
        let error = full.filter_map(Result::err).next().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"WATCHDOG=1");
        let name = format!("uvxlan test {}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        send_to(OsStr::new(&format!("@{name}")), "READY=1").unwrap();
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
    }

    #[test]
    fn one_stuck_worker_is_enough() {
        let mut watchdog = Watchdog {
            limit: None,
            progress: Vec::new(),
            taken: None,
            complained: None,
        };
        let start = Instant::now();
        watchdog.feed(&[1, 1], start);
        // After a change on the host, it is looked at soon: an idle worker had no turn yet.
        watchdog.feed(&[1, 1], start + SPAN / 5);
        assert!(watchdog.complained.is_none());
        assert!(watchdog.has_moved(&[2, 2]));
        assert!(!watchdog.has_moved(&[2, 1]));
        watchdog.feed(&[2, 1], start + SPAN);
        assert!(watchdog.complained.is_some());
        watchdog.feed(&[3, 2], start + 2 * SPAN);
        assert!(watchdog.complained.is_none());
        // The device was made anew, with other workers.
        assert!(watchdog.has_moved(&[0]));
    }
}
