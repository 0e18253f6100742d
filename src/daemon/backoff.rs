//! How long to wait between two attempts, and which failures to log.

use std::time::Duration;

use crate::daemon::notify::Notifier;

/// flannel's pause of a second at first, then longer.
const PAUSE_SECONDS: [u64; 5] = [1, 1, 2, 5, 10];
/// What one attempt may take before the service manager counts it as hanging.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// Growing pauses. Failures are logged until the pause has grown, then every sixth: one a
/// minute.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: usize,
}

impl Backoff {
    /// Whether the next failure is logged.
    pub(crate) const fn should_log(&self) -> bool {
        self.failures < PAUSE_SECONDS.len() || self.failures.is_multiple_of(6)
    }

    /// Waits until the next attempt of a start, and keeps the service manager from ending it
    /// meanwhile.
    pub(crate) async fn wait(&mut self, notifier: &Notifier, log: impl FnOnce()) {
        let (should_log, pause) = self.next();
        if should_log {
            log();
        }
        notifier.extend_start(pause + ATTEMPT_TIMEOUT);
        tokio::time::sleep(pause).await;
    }

    /// After one more failure: whether to log it, and the pause before the next attempt.
    pub(crate) fn next(&mut self) -> (bool, Duration) {
        let should_log = self.should_log();
        let seconds = PAUSE_SECONDS[self.failures.min(PAUSE_SECONDS.len() - 1)];
        self.failures += 1;
        (should_log, Duration::from_secs(seconds))
    }
}
