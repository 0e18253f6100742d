//! Which of the latest probes were lost, and in which direction. Pure.

use std::time::{Duration, Instant};

use crate::wire::probe::Seen;

/// Probes that losses are counted over.
const WINDOW: u32 = 20;
/// A probe that was sent this long before the peer's report would be in it.
const GRACE: Duration = Duration::from_secs(1);
/// With more lost probes than this whose direction is unknown, no direction is reported.
const MAX_UNKNOWN: u32 = 2;

/// Losses among the latest probes, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loss {
    /// Probes without a reply.
    pub(crate) percent: u8,
    /// Of the probes sent, those that did not reach the peer, if it reports that.
    pub(crate) out_percent: Option<u8>,
    /// Of the probes that reached the peer, those whose reply was lost.
    pub(crate) in_percent: Option<u8>,
}

/// The latest probes to one peer: bit `i` stands for number `latest - i`. They are at least a
/// second apart, so all but the latest have had their time to arrive.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Losses {
    latest: u32,
    /// When the latest was sent.
    at: Option<Instant>,
    sent: u32,
    answered: u32,
    /// Those known to have reached the peer, and those known not to.
    arrived: u32,
    missing: u32,
}

impl Losses {
    pub(super) fn sent(&mut self, number: u32, at: Instant) {
        let ahead = match self.at {
            Some(_) => number.wrapping_sub(self.latest),
            None => u32::BITS,
        };
        for bits in [
            &mut self.sent,
            &mut self.answered,
            &mut self.arrived,
            &mut self.missing,
        ] {
            // One more than the window: the probe that was just sent does not count yet.
            *bits = bits.checked_shl(ahead).unwrap_or(0) & ((2 << WINDOW) - 1);
        }
        self.sent |= 1;
        (self.latest, self.at) = (number, Some(at));
    }

    /// A reply came in time.
    pub(super) fn answered(&mut self, number: u32) {
        let behind = self.latest.wrapping_sub(number);
        let bit = 1u32.checked_shl(behind).unwrap_or(0) & self.sent;
        self.answered |= bit;
        self.arrived |= bit;
        self.missing &= !bit;
    }

    /// The peer reports at `now` which probes have reached it.
    pub(super) fn reported(&mut self, seen: Seen, now: Instant) {
        for behind in 0..=WINDOW {
            let bit = 1 << behind;
            // Later reports do not change that a probe has arrived.
            if self.sent & !self.arrived & bit == 0 {
                continue;
            }
            let number = self.latest.wrapping_sub(behind);
            let in_flight = behind == 0
                && self
                    .at
                    .is_some_and(|at| now.saturating_duration_since(at) < GRACE);
            match seen.latest.wrapping_sub(number) {
                age @ 0..32 if seen.mask >> age & 1 == 1 => {
                    self.arrived |= bit;
                    self.missing &= !bit;
                }
                0..32 => self.missing |= bit,
                _ if !in_flight => self.missing |= bit,
                _ => {}
            }
        }
    }

    /// `None` until a probe was answered or lost.
    pub(super) fn count(&self) -> Option<Loss> {
        let ended = self.sent & (self.answered | !1);
        let count = |bits: u32| (bits & ended).count_ones();
        let all = count(ended);
        let (arrived, missing) = (count(self.arrived), count(self.missing));
        let is_known = all - arrived - missing <= MAX_UNKNOWN;
        Some(Loss {
            percent: percent(count(!self.answered), all)?,
            out_percent: percent(missing, arrived + missing).filter(|_| is_known),
            in_percent: percent(count(self.arrived & !self.answered), arrived).filter(|_| is_known),
        })
    }
}

fn percent(part: u32, whole: u32) -> Option<u8> {
    let percent = (part * 100).checked_div(whole)?;
    u8::try_from(percent).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(percent: u8, out: Option<u8>, back: Option<u8>) -> Option<Loss> {
        Some(Loss {
            percent,
            out_percent: out,
            in_percent: back,
        })
    }

    fn seen(latest: u32, mask: u32) -> Seen {
        Seen {
            session: 1,
            latest,
            mask,
        }
    }

    /// Probes 1 to 20 a second apart, and when the last was sent.
    fn twenty() -> (Losses, Instant) {
        let start = Instant::now();
        let mut losses = Losses::default();
        let at = |number: u32| start + Duration::from_secs(number.into());
        (1..=20).for_each(|number| losses.sent(number, at(number)));
        (losses, at(20))
    }

    #[test]
    fn a_probe_in_flight_is_not_lost() {
        let mut losses = Losses::default();
        assert_eq!(losses.count(), None);
        losses.sent(1, Instant::now());
        assert_eq!(losses.count(), None);
        losses.answered(1);
        assert_eq!(losses.count(), loss(0, Some(0), Some(0)));
    }

    #[test]
    fn the_peers_report_tells_the_direction_of_losses() {
        let (mut losses, now) = twenty();
        // 20 and every fourth before it were answered, the even ones arrived.
        (1..=20)
            .filter(|n| n % 4 == 0)
            .for_each(|number| losses.answered(number));
        losses.reported(seen(20, 0b0101_0101_0101_0101_0101), now);
        assert_eq!(losses.count(), loss(75, Some(50), Some(50)));
    }

    #[test]
    fn requests_of_a_peer_report_that_none_of_ours_arrive() {
        let (mut losses, now) = twenty();
        losses.reported(seen(0, 0), now + GRACE);
        assert_eq!(losses.count(), loss(100, Some(100), None));
    }

    #[test]
    fn silence_says_nothing_about_the_direction() {
        let (mut losses, now) = twenty();
        (1..=10).for_each(|number| losses.answered(number));
        assert_eq!(losses.count(), loss(47, None, None));
        losses.reported(seen(10, u32::MAX), now);
        assert_eq!(losses.count(), loss(47, Some(47), Some(0)));
        // The latest counts only once it has had its time to arrive.
        losses.sent(21, now + GRACE);
        assert_eq!(losses.count(), loss(50, Some(47), Some(0)));
        losses.reported(seen(10, u32::MAX), now + GRACE);
        assert_eq!(losses.count(), loss(50, Some(50), Some(0)));
    }

    #[test]
    fn skipped_numbers_are_no_probes() {
        let (mut losses, now) = (Losses::default(), Instant::now());
        for number in [u32::MAX, 2, 5] {
            losses.sent(number, now);
        }
        losses.answered(5);
        losses.answered(3);
        losses.reported(seen(5, u32::MAX), now);
        assert_eq!(losses.count(), loss(66, Some(0), Some(66)));
        losses.sent(500, now);
        losses.sent(501, now);
        assert_eq!(losses.count(), loss(100, None, None));
    }

    #[test]
    fn only_the_latest_count() {
        let (mut losses, now) = twenty();
        for number in 21..=60 {
            losses.sent(number, now);
            losses.answered(number);
        }
        assert_eq!(losses.count(), loss(0, Some(0), Some(0)));
    }
}
