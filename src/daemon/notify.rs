//! What systemd is told (`sd_notify(3)`); nothing happens where nobody listens.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

static LAST_STATUS: Mutex<String> = Mutex::new(String::new());

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

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(event = "notify_failed", %error, "cannot tell the service manager");
    }
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
