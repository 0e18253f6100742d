//! Histogram of the probes' round trips. Pure.

use std::time::Duration;

use crate::control::Histogram;

/// Upper bounds of the buckets in microseconds; one more bucket has no bound.
const BOUNDS: [u32; 13] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000,
];

#[derive(Debug, Clone, Default)]
pub(super) struct RoundTrips {
    sum: Duration,
    counts: [u64; BOUNDS.len() + 1],
}

impl RoundTrips {
    pub(super) fn count(&mut self, rtt: Duration) {
        self.sum = self.sum.saturating_add(rtt);
        let bucket = BOUNDS.partition_point(|bound| u128::from(*bound) < rtt.as_micros());
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
    }

    /// In seconds.
    pub(super) fn histogram(&self) -> Histogram {
        let bounds = BOUNDS.iter().map(|bound| Some(f64::from(*bound) / 1e6));
        Histogram {
            sum: self.sum.as_secs_f64(),
            counts: bounds.chain([None]).zip(self.counts).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_is_counted_in_the_first_bucket_that_holds_it() {
        let mut trips = RoundTrips::default();
        for micros in [1, 100, 101, 2_000_000] {
            trips.count(Duration::from_micros(micros));
        }
        let histogram = trips.histogram();
        assert_eq!(
            histogram.counts[..2],
            [(Some(0.0001), 2), (Some(0.00025), 1)]
        );
        assert_eq!(histogram.counts.last(), Some(&(None, 1)));
        assert!((histogram.sum - 2.000_202).abs() < 1e-9);
    }
}
