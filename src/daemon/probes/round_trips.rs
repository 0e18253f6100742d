//! Round trips of probes, counted in ranges. Pure.

use std::time::Duration;

use crate::control::SizeCounts;

/// Longest round trip of each range in microseconds; longer ones have a range of their own.
const LONGEST: [u32; 13] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000,
];

/// The books.
#[derive(Debug, Clone, Default)]
pub struct RoundTrips {
    sum: Duration,
    counts: [u64; LONGEST.len() + 1],
}

impl RoundTrips {
    /// Counts one.
    pub fn count(&mut self, rtt: Duration) {
        self.sum = self.sum.saturating_add(rtt);
        let range = LONGEST.partition_point(|longest| u128::from(*longest) < rtt.as_micros());
        if let Some(count) = self.counts.get_mut(range) {
            *count += 1;
        }
    }

    /// For whoever asks, in seconds.
    #[must_use]
    pub fn told(&self) -> SizeCounts {
        let longest = LONGEST
            .iter()
            .map(|longest| Some(f64::from(*longest) / 1e6));
        SizeCounts {
            sum: self.sum.as_secs_f64(),
            counts: longest.chain([None]).zip(self.counts).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_is_counted_in_the_first_range_that_holds_it() {
        let mut trips = RoundTrips::default();
        for micros in [1, 100, 101, 2_000_000] {
            trips.count(Duration::from_micros(micros));
        }
        let told = trips.told();
        assert_eq!(told.counts[..2], [(Some(0.0001), 2), (Some(0.00025), 1)]);
        assert_eq!(told.counts.last(), Some(&(None, 1)));
        assert!((told.sum - 2.000_202).abs() < 1e-9);
    }
}
