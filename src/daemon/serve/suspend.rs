//! Detects that the machine was suspended. `CLOCK_BOOTTIME` goes on meanwhile, `CLOCK_MONOTONIC`
//! does not, and nor do timers.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The clocks are read one after the other; a smaller difference means nothing.
const TOLERANCE: Duration = Duration::from_secs(1);

/// Compares the two clocks.
#[derive(Debug)]
pub(crate) struct SuspendDetector {
    /// How long the machine was suspended since it was booted.
    total: Duration,
}

impl Default for SuspendDetector {
    fn default() -> Self {
        Self {
            total: total_suspended(),
        }
    }
}

impl SuspendDetector {
    /// How long the machine was suspended since the last call, if it was.
    pub(crate) fn since_last_call(&mut self) -> Option<Duration> {
        self.update(total_suspended())
    }

    fn update(&mut self, total: Duration) -> Option<Duration> {
        let suspended = total.saturating_sub(self.total);
        self.total = total;
        (suspended > TOLERANCE).then_some(suspended)
    }
}

fn total_suspended() -> Duration {
    let read = |clock| {
        let time = clock_gettime(clock);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
    };
    let running = read(ClockId::Monotonic);
    read(ClockId::Boottime).saturating_sub(running)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_suspend_is_reported_once() {
        let mut detector = SuspendDetector::default();
        assert_eq!(detector.since_last_call(), None, "this machine is awake");
        let before = detector.total;
        let hour = Duration::from_secs(3600);
        assert_eq!(detector.update(before + Duration::from_millis(20)), None);
        let suspended = detector.update(before + hour);
        assert!(suspended.is_some_and(|suspended| suspended > hour / 2));
        assert_eq!(detector.update(before + hour), None);
        assert_eq!(detector.update(before), None, "a clock that goes back");
    }
}
