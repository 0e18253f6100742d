//! How long to wait between tries, and which of them are worth a line.

use std::time::Duration;

use crate::daemon::notify;

/// Pauses between two tries: flannel's second at first, then longer.
const RETRY_SECONDS: [u64; 5] = [1, 1, 2, 5, 10];
/// Longest time that one step between two waits may take.
const STEP: Duration = Duration::from_secs(30);

/// Pauses that grow, and a log line for each pause until they have grown, then every
/// sixth: one a minute.
#[derive(Debug, Default)]
pub struct Patience(usize);

impl Patience {
    /// Whether the next failure is worth a line.
    #[must_use]
    pub const fn tells(&self) -> bool {
        self.0 < RETRY_SECONDS.len() || self.0.is_multiple_of(6)
    }

    /// Waits until the next try of a start, which is told to take longer.
    pub async fn wait(&mut self, log: impl FnOnce()) {
        let (is_told, pause) = self.step();
        if is_told {
            log();
        }
        // A service manager must not take waiting for hanging.
        notify::extend_start(pause + STEP);
        tokio::time::sleep(pause).await;
    }

    /// One try more has failed: whether to say so, and how long to wait.
    pub fn step(&mut self) -> (bool, Duration) {
        let is_told = self.tells();
        let seconds = RETRY_SECONDS[self.0.min(RETRY_SECONDS.len() - 1)];
        self.0 += 1;
        (is_told, Duration::from_secs(seconds))
    }
}
