//! Warm-up and processor time of a measurement.

use std::fs;
use std::time::Duration;

/// How long traffic flows before it is measured, so that windows open and buffers grow.
pub(super) const WARM_UP: Duration = Duration::from_millis(400);
/// `USER_HZ`, the unit of `/proc/stat`, on every architecture of Linux but Alpha.
const TICKS_PER_SECOND: u64 = 100;

/// Processor time that the machine has spent so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct CpuTime(Option<u64>);

impl CpuTime {
    pub(super) fn now() -> Self {
        Self(
            fs::read_to_string("/proc/stat")
                .ok()
                .and_then(|text| busy_ticks(&text)),
        )
    }

    /// Time that all processors have spent since then; zero if `/proc/stat` cannot be read.
    pub(super) fn elapsed(self) -> Duration {
        let ticks = match (self.0, Self::now().0) {
            (Some(before), Some(after)) => after.saturating_sub(before),
            _ => 0,
        };
        Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
    }
}

/// User, nice, system, irq and softirq time: all but idle, iowait, steal and guests.
fn busy_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<u64> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let field = |index: usize| fields.get(index).copied();
    Some(field(0)? + field(1)? + field(2)? + field(5)? + field(6)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_time_is_not_busy() {
        let stat = "cpu  10 1 20 1000 50 3 4 77 0 0\ncpu0 5 0 10 500 25 1 2 33 0 0\n";
        assert_eq!(busy_ticks(stat), Some(38));
        assert_eq!(busy_ticks("intr 1"), None);
    }
}
