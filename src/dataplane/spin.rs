//! How long to look for the next packet before going to sleep.
//!
//! A sleeping worker costs the next packet a wake-up: two to fifty microseconds, most where
//! the processor went idle inside a virtual machine. A request and its answer pay that four
//! times. Looking on for a moment saves it, and is worth it only while packets follow each
//! other closely: the rule here is that of the kernel's own halt polling
//! (`Documentation/virt/kvm/halt-polling.rst`): look on after waits that were short, stop after
//! waits that were long.

use std::time::Duration;

/// Looking on in vain so often, a worker sleeps at once until a wait is short again.
const PATIENCE: u32 = 4;
/// Longer than this away at a yield, and somebody else needs the processor.
const AWAY: Duration = Duration::from_micros(150);
/// How long nobody looks on after that.
const RESPITE: Duration = Duration::from_millis(20);

/// Decides, without a clock of its own; times are since some common start.
#[derive(Debug, Clone)]
pub struct Spin {
    limit: Duration,
    /// Left before it is given up; 0 is asleep.
    patience: u32,
    not_before: Duration,
}

impl Spin {
    /// Looks on for at most `limit` at a time; zero never does.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self {
            limit,
            patience: 0,
            not_before: Duration::ZERO,
        }
    }

    /// How long to look on now, before sleeping.
    #[must_use]
    pub fn budget(&self, now: Duration) -> Duration {
        if self.patience == 0 || now < self.not_before {
            Duration::ZERO
        } else {
            self.limit
        }
    }

    /// A packet came while we looked on.
    pub const fn found(&mut self) {
        self.patience = PATIENCE;
    }

    /// We looked on in vain.
    pub const fn missed(&mut self) {
        self.patience = self.patience.saturating_sub(1);
    }

    /// We slept this long until a packet came.
    pub fn slept(&mut self, waited: Duration) {
        if waited <= self.limit {
            self.patience = PATIENCE;
        }
    }

    /// A yield took this long, and ended at `now`. Returns whether to go on looking.
    pub fn yielded(&mut self, took: Duration, now: Duration) -> bool {
        let wanted_elsewhere = took > AWAY;
        if wanted_elsewhere {
            self.patience = 0;
            self.not_before = now + RESPITE;
        }
        !wanted_elsewhere
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(100);
    const NOW: Duration = Duration::from_secs(1);

    #[test]
    fn only_short_waits_make_it_look_on() {
        let mut spin = Spin::new(LIMIT);
        assert_eq!(spin.budget(NOW), Duration::ZERO);
        spin.slept(LIMIT * 2);
        assert_eq!(spin.budget(NOW), Duration::ZERO);
        spin.slept(LIMIT / 2);
        assert_eq!(spin.budget(NOW), LIMIT);
    }

    #[test]
    fn in_vain_too_often_and_it_sleeps() {
        let mut spin = Spin::new(LIMIT);
        spin.slept(LIMIT);
        for _ in 0..PATIENCE - 1 {
            spin.missed();
            assert_eq!(spin.budget(NOW), LIMIT);
        }
        spin.found();
        for _ in 0..PATIENCE {
            spin.missed();
        }
        assert_eq!(spin.budget(NOW), Duration::ZERO);
    }

    #[test]
    fn it_makes_way_for_others() {
        let mut spin = Spin::new(LIMIT);
        spin.found();
        assert!(spin.yielded(Duration::from_micros(3), NOW));
        assert!(!spin.yielded(AWAY * 2, NOW));
        spin.slept(LIMIT);
        assert_eq!(spin.budget(NOW + RESPITE / 2), Duration::ZERO);
        assert_eq!(spin.budget(NOW + RESPITE), LIMIT);
    }

    #[test]
    fn a_limit_of_zero_never_looks_on() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.slept(Duration::from_micros(1));
        spin.found();
        assert_eq!(spin.budget(NOW), Duration::ZERO);
    }
}
