//! Notifies the service manager (`sd_notify(3)`); does nothing without one.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The service manager that this process was started by, if any; clones share their state.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notifier(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    socket: Option<OsString>,
    last_status: Mutex<Option<String>>,
    /// READY could not be sent, and goes with the next message.
    owes_ready: AtomicBool,
}

impl Notifier {
    pub(crate) fn of_environment() -> Self {
        Self(Arc::new(Inner {
            socket: env::var_os("NOTIFY_SOCKET"),
            ..Inner::default()
        }))
    }

    /// Everything is in place: lease, device, routes and subnet file.
    pub(crate) fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// One line for `systemctl status`, and for `uvxlan status` during a start.
    pub(crate) fn status(&self, text: &str) {
        *self.lock_status() = Some(text.to_owned());
        self.send(&[NotifyState::Status(text)]);
    }

    pub(crate) fn last_status(&self) -> Option<String> {
        self.lock_status().clone()
    }

    fn lock_status(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        let status = self.0.last_status.lock();
        status.unwrap_or_else(PoisonError::into_inner)
    }

    /// The start takes this much longer. Has no effect after READY.
    pub(crate) fn extend_start(&self, by: Duration) {
        let microseconds = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
        self.send(&[NotifyState::ExtendTimeoutUsec(microseconds)]);
    }

    pub(crate) fn stopping(&self) {
        self.send(&[NotifyState::Stopping]);
    }

    /// Sends without waiting: a service manager that does not read must not stop the control
    /// side. The next status or watchdog message makes up for one that was lost, and READY is
    /// sent again with it.
    fn send(&self, state: &[NotifyState<'_>]) {
        let Some(to) = &self.0.socket else {
            return;
        };
        let owes_ready = &self.0.owes_ready;
        let mut text: Vec<_> = state.iter().map(ToString::to_string).collect();
        let mut is_ready = matches!(state, [NotifyState::Ready, ..]);
        if owes_ready.swap(false, Ordering::Relaxed) && !is_ready {
            is_ready = true;
            text.push(NotifyState::Ready.to_string());
        }
        match send_to(to, &text.join("\n")) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                owes_ready.store(is_ready, Ordering::Relaxed);
                tracing::warn!(event = "notify_failed", "the service manager does not read");
            }
            Err(error) => {
                tracing::warn!(event = "notify_failed", %error, "cannot notify the service manager");
            }
            Ok(_) => {}
        }
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

/// Feeds the service manager's watchdog as long as all packet threads make progress.
#[derive(Debug)]
pub(crate) struct Watchdog {
    notifier: Notifier,
    /// `WatchdogSec=` of the unit.
    timeout: Option<Duration>,
    progress: Vec<u64>,
    /// When that was compared.
    compared: Option<Instant>,
    stuck: bool,
}

/// Least time between two comparisons: longer than the second in which an idle worker makes a
/// turn, shorter than the pause between regular checks.
const MIN_INTERVAL: Duration = Duration::from_millis(1500);

impl Watchdog {
    pub(crate) fn of_environment(notifier: Notifier) -> Self {
        Self {
            notifier,
            timeout: sd_notify::watchdog_enabled(),
            progress: Vec::new(),
            compared: None,
            stuck: false,
        }
    }

    /// Takes the number of turns of each worker. An idle worker makes one a second, so one that
    /// made none since the last comparison hangs. Calls that follow too closely are ignored.
    pub(crate) fn feed(&mut self, progress: &[u64], now: Instant) {
        if self.compared.is_some_and(|at| now - at < MIN_INTERVAL) {
            return;
        }
        self.compared = Some(now);
        let moved = self.has_moved(progress);
        self.progress = progress.to_vec();
        if moved && self.timeout.is_some() {
            self.notifier.send(&[NotifyState::Watchdog]);
        } else if !moved && !self.stuck {
            tracing::error!(event = "worker_stuck", "a packet thread makes no progress");
        }
        self.stuck = !moved;
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
    fn a_service_manager_that_does_not_read_is_not_waited_for() {
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
            notifier: Notifier::default(),
            timeout: None,
            progress: Vec::new(),
            compared: None,
            stuck: false,
        };
        let start = Instant::now();
        watchdog.feed(&[1, 1], start);
        // After a change on the host the next call is soon: an idle worker had no turn yet.
        watchdog.feed(&[1, 1], start + MIN_INTERVAL / 5);
        assert!(!watchdog.stuck);
        assert!(watchdog.has_moved(&[2, 2]));
        assert!(!watchdog.has_moved(&[2, 1]));
        watchdog.feed(&[2, 1], start + MIN_INTERVAL);
        assert!(watchdog.stuck);
        watchdog.feed(&[3, 2], start + 2 * MIN_INTERVAL);
        assert!(!watchdog.stuck);
        // The device was rebuilt, with other workers.
        assert!(watchdog.has_moved(&[0]));
    }
}
