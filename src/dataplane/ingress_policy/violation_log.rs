//! Says which peers do what the peer check would refuse, where it only looks on
//! (`--peer-check=log`): a line of each packet thread for each peer and rule, and
//! never many.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::dataplane::counters::Counter;
use crate::wire::ipv4::Packet;

/// A peer that goes on is named again after this time.
const AGAIN: Duration = Duration::from_secs(600);
/// Lines of a minute at most; whoever invents senders fills no disk.
const LINES: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);
/// Pairs of sender and rule that are remembered.
const PLACES: usize = 64;

/// What was said, and when. Owned by one packet thread.
#[derive(Debug, Default)]
pub(crate) struct ViolationLog {
    told: Vec<Told>,
    /// When the current minute began, and its lines.
    minute: Option<(Instant, u32)>,
}

#[derive(Debug, Clone, Copy)]
struct Told {
    sender: Ipv4Addr,
    rule: Counter,
    at: Instant,
}

impl ViolationLog {
    /// A packet passed that `rule` would have dropped.
    #[cold]
    pub(crate) fn tell(&mut self, sender: Ipv4Addr, rule: Counter, packet: &Packet<'_>) {
        if self.is_news(sender, rule, Instant::now()) {
            tracing::warn!(
                event = "peer_check", peer = %sender, rule = rule.label(),
                source = %packet.source(), destination = %packet.destination(),
                "a packet passed that --peer-check=enforce would drop"
            );
        }
    }

    fn is_news(&mut self, sender: Ipv4Addr, rule: Counter, now: Instant) -> bool {
        let same = |told: &Told| told.sender == sender && told.rule == rule;
        let known = self.told.iter().position(same);
        if known.is_some_and(|place| now - self.told[place].at < AGAIN) {
            return false;
        }
        let lines = match self.minute {
            Some((began, lines)) if now - began < MINUTE => lines,
            _ => {
                self.minute = Some((now, 0));
                0
            }
        };
        if lines >= LINES {
            return false;
        }
        if let Some((_, lines)) = &mut self.minute {
            *lines += 1;
        }
        let news = Told {
            sender,
            rule,
            at: now,
        };
        match known {
            Some(place) => self.told[place] = news,
            None if self.told.len() < PLACES => self.told.push(news),
            // The one that was told longest ago makes room.
            None => {
                if let Some(oldest) = self.told.iter_mut().min_by_key(|told| told.at) {
                    *oldest = news;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(0xc000_0200 + number)
    }

    #[test]
    fn each_sender_and_rule_is_told_once_in_a_while() {
        let (mut witness, start) = (ViolationLog::default(), Instant::now());
        let mut news = |number, rule, seconds| {
            witness.is_news(sender(number), rule, start + Duration::from_secs(seconds))
        };
        assert!(news(1, Counter::InForeignSource, 0));
        assert!(!news(1, Counter::InForeignSource, 1));
        assert!(news(1, Counter::InMartian, 1));
        assert!(news(2, Counter::InMartian, 1));
        assert!(!news(1, Counter::InForeignSource, 599));
        assert!(news(1, Counter::InForeignSource, 600));
        assert!(!news(1, Counter::InForeignSource, 601));
    }

    #[test]
    fn many_senders_make_few_lines_and_take_little_memory() {
        let (mut witness, start) = (ViolationLog::default(), Instant::now());
        let mut lines = 0;
        for round in 0..600u32 {
            for number in 0..50 {
                let now = start + Duration::from_secs(u64::from(round));
                let rule = Counter::InUnknownPeer;
                lines += u32::from(witness.is_news(sender(round * 50 + number), rule, now));
            }
        }
        assert_eq!(lines, 10 * LINES);
        assert!(witness.told.len() <= PLACES);
    }
}
