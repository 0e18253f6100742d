//! Which of the latest probes were lost, and on which of both ways. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::wire::probe::Seen;

/// Probes that losses are counted over.
const WINDOW: usize = 20;
/// A probe that was on its way for so long when the peer said what it has got would have been
/// among it.
const GRACE: Duration = Duration::from_secs(1);
/// Lost probes of which the way is not known, and the others still tell the ways apart.
const UNKNOWN: usize = 2;

/// Losses among the latest probes, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Unanswered.
    pub percent: u8,
    /// Of those sent, what did not reach the peer, where it says so.
    pub out_percent: Option<u8>,
    /// Of those that reached it, what was answered in vain.
    pub in_percent: Option<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    number: u32,
    at: Instant,
    answered: bool,
    /// Whether it reached the peer, as far as that is known.
    arrived: Option<bool>,
}

/// The latest probes to one peer.
#[derive(Debug, Clone, Default)]
pub struct Losses(VecDeque<Sent>);

impl Losses {
    /// A probe is on its way.
    pub fn sent(&mut self, number: u32, at: Instant) {
        // The one that is on its way does not count yet.
        while self.0.len() > WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(Sent {
            number,
            at,
            answered: false,
            arrived: None,
        });
    }

    /// It was answered in time.
    pub fn answered(&mut self, number: u32) {
        if let Some(sent) = self.0.iter_mut().find(|sent| sent.number == number) {
            sent.answered = true;
            sent.arrived = Some(true);
        }
    }

    /// The peer said at `now` what has reached it.
    pub fn reported(&mut self, seen: Seen, now: Instant) {
        for sent in &mut self.0 {
            let behind = seen.latest.wrapping_sub(sent.number);
            match behind {
                // Of one that it knows to have got, later words of it change nothing.
                _ if sent.arrived == Some(true) => {}
                0..32 => sent.arrived = Some(seen.mask >> behind & 1 == 1),
                _ if now.saturating_duration_since(sent.at) >= GRACE => sent.arrived = Some(false),
                _ => {}
            }
        }
    }

    /// Losses, once a probe has ended.
    #[must_use]
    pub fn count(&self) -> Option<Loss> {
        let latest = self.0.back()?.number;
        let ended = || {
            let ended = self.0.iter();
            ended.filter(move |sent| sent.answered || sent.number != latest)
        };
        let all = ended().count();
        let count = |wanted: &dyn Fn(&Sent) -> bool| ended().filter(|sent| wanted(sent)).count();
        let lost = count(&|sent| !sent.answered);
        let unknown = count(&|sent| sent.arrived.is_none());
        let arrived = count(&|sent| sent.arrived == Some(true));
        let in_vain = count(&|sent| sent.arrived == Some(true) && !sent.answered);
        let told = unknown <= UNKNOWN;
        Some(Loss {
            percent: percent(lost, all)?,
            out_percent: percent(all - unknown - arrived, all - unknown).filter(|_| told),
            in_percent: percent(in_vain, arrived).filter(|_| told),
        })
    }
}

fn percent(part: usize, whole: usize) -> Option<u8> {
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
    fn the_one_on_its_way_is_not_lost() {
        let mut losses = Losses::default();
        assert_eq!(losses.count(), None);
        losses.sent(1, Instant::now());
        assert_eq!(losses.count(), None);
        losses.answered(1);
        assert_eq!(losses.count(), loss(0, Some(0), Some(0)));
    }

    #[test]
    fn what_the_peer_has_got_tells_the_ways_apart() {
        let (mut losses, now) = twenty();
        // 20 and every fourth before it were answered, the even ones arrived.
        (1..=20)
            .filter(|n| n % 4 == 0)
            .for_each(|number| losses.answered(number));
        losses.reported(seen(20, 0b0101_0101_0101_0101_0101), now);
        assert_eq!(losses.count(), loss(75, Some(50), Some(50)));
    }

    #[test]
    fn requests_of_a_peer_that_gets_none_of_ours_say_so() {
        let (mut losses, now) = twenty();
        losses.reported(seen(0, 0), now + GRACE);
        assert_eq!(losses.count(), loss(100, Some(100), None));
    }

    #[test]
    fn from_silence_nothing_is_concluded() {
        let (mut losses, now) = twenty();
        (1..=10).for_each(|number| losses.answered(number));
        assert_eq!(losses.count(), loss(47, None, None));
        // Too early to know of those that are on the way.
        losses.reported(seen(10, u32::MAX), now - Duration::from_secs(9));
        assert_eq!(losses.count(), loss(47, None, None));
        losses.reported(seen(10, u32::MAX), now);
        assert_eq!(losses.count(), loss(47, Some(47), Some(0)));
    }

    #[test]
    fn only_the_latest_count() {
        let (mut losses, now) = twenty();
        for number in 21..=60 {
            losses.sent(number, now);
            losses.answered(number);
        }
        assert_eq!(losses.count(), loss(0, Some(0), Some(0)));
        assert!(losses.0.len() <= WINDOW + 1);
    }
}
