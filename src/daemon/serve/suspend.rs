//! Notices that the machine was suspended: its clock of uptime went on, that of running time
//! did not, and nor did anything that waits by it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Both clocks are read one after the other; so much between them is no sleep.
const NOISE: Duration = Duration::from_secs(1);

/// How far the clock that counts sleep is ahead of the one that does not.
#[derive(Debug)]
pub struct Suspended {
    ahead: Duration,
}

impl Default for Suspended {
    fn default() -> Self {
        Self { ahead: ahead() }
    }
}

impl Suspended {
    /// How long the machine slept since the last call, if it did.
    pub fn look(&mut self) -> Option<Duration> {
        self.judge(ahead())
    }

    fn judge(&mut self, ahead: Duration) -> Option<Duration> {
        let slept = ahead.saturating_sub(self.ahead);
        self.ahead = ahead;
        (slept > NOISE).then_some(slept)
    }
}

fn ahead() -> Duration {
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
    fn sleep_is_told_once_and_noise_is_none() {
        let mut clocks = Suspended::default();
        assert_eq!(clocks.look(), None, "this machine is awake");
        let awake = clocks.ahead;
        let hour = Duration::from_secs(3600);
        assert_eq!(clocks.judge(awake + Duration::from_millis(20)), None);
        assert!(
            clocks
                .judge(awake + hour)
                .is_some_and(|slept| slept > hour / 2)
        );
        assert_eq!(clocks.judge(awake + hour), None);
        assert_eq!(
            clocks.judge(awake),
            None,
            "clocks never go back, but if they did"
        );
    }
}
