//! How long to poll for the next packet before going to sleep.
//!
//! A sleeping worker costs the next packet a wake-up: 2 to 50 µs, most where a virtual machine's
//! CPU went idle. A request and its answer pay that four times. Polling for a moment avoids it,
//! but is worth the CPU time only while packets follow each other closely. The rule is that of
//! the kernel's halt polling (`Documentation/virt/kvm/halt-polling.rst`): poll after short
//! waits, stop after long ones.

use std::time::Duration;

/// After this many polls in a row without a packet, a worker sleeps at once until a wait is
/// short again.
const MAX_MISSES: u32 = 4;
/// A yield that takes longer than this means that another process needs the CPU.
const YIELD_LIMIT: Duration = Duration::from_micros(150);
/// How long not to poll after such a yield.
const BACKOFF_INTERVAL: Duration = Duration::from_millis(20);

/// Adaptive polling. It has no clock of its own: times count from any common start.
#[derive(Debug, Clone)]
pub(super) struct Spin {
    limit: Duration,
    /// Misses left before polling stops; 0 means that it has stopped.
    misses_left: u32,
    not_before: Duration,
}

impl Spin {
    /// Polls for at most `limit` at a time; zero never polls.
    pub(super) const fn new(limit: Duration) -> Self {
        Self {
            limit,
            misses_left: 0,
            not_before: Duration::ZERO,
        }
    }

    /// How long to poll now, before sleeping.
    pub(super) fn budget(&self, now: Duration) -> Duration {
        if self.misses_left == 0 || now < self.not_before {
            Duration::ZERO
        } else {
            self.limit
        }
    }

    /// A packet came while the worker polled.
    pub(super) const fn hit(&mut self) {
        self.misses_left = MAX_MISSES;
    }

    /// No packet came while the worker polled.
    pub(super) const fn missed(&mut self) {
        self.misses_left = self.misses_left.saturating_sub(1);
    }

    /// The worker slept this long until a packet came.
    pub(super) fn slept(&mut self, waited: Duration) {
        if waited <= self.limit {
            self.misses_left = MAX_MISSES;
        }
    }

    /// A yield took this long and ended at `now`. Returns whether to go on polling.
    pub(super) fn yielded(&mut self, took: Duration, now: Duration) -> bool {
        let contended = took > YIELD_LIMIT;
        if contended {
            self.misses_left = 0;
            self.not_before = now + BACKOFF_INTERVAL;
        }
        !contended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(100);
    const NOW: Duration = Duration::from_secs(1);

    #[test]
    fn only_short_waits_start_polling() {
        let mut spin = Spin::new(LIMIT);
        assert_eq!(spin.budget(NOW), Duration::ZERO);
        spin.slept(LIMIT * 2);
        assert_eq!(spin.budget(NOW), Duration::ZERO);
        spin.slept(LIMIT / 2);
        assert_eq!(spin.budget(NOW), LIMIT);
    }

    #[test]
    fn repeated_misses_stop_polling() {
        let mut spin = Spin::new(LIMIT);
        spin.slept(LIMIT);
        for _ in 0..MAX_MISSES - 1 {
            spin.missed();
            assert_eq!(spin.budget(NOW), LIMIT);
        }
        spin.hit();
        for _ in 0..MAX_MISSES {
            spin.missed();
        }
        assert_eq!(spin.budget(NOW), Duration::ZERO);
    }

    #[test]
    fn a_long_yield_stops_polling_for_a_while() {
        let mut spin = Spin::new(LIMIT);
        spin.hit();
        assert!(spin.yielded(Duration::from_micros(3), NOW));
        assert!(!spin.yielded(YIELD_LIMIT * 2, NOW));
        spin.slept(LIMIT);
        assert_eq!(spin.budget(NOW + BACKOFF_INTERVAL / 2), Duration::ZERO);
        assert_eq!(spin.budget(NOW + BACKOFF_INTERVAL), LIMIT);
    }

    #[test]
    fn a_limit_of_zero_never_polls() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.slept(Duration::from_micros(1));
        spin.hit();
        assert_eq!(spin.budget(NOW), Duration::ZERO);
    }
}
