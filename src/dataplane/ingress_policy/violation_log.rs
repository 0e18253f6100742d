//! With `--peer-check=log`, logs which peers violate the policy: one line per packet thread,
//! peer and rule, repeated every ten minutes while it goes on.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::dataplane::counters::Counter;
use crate::wire::ipv4::Packet;

/// When a violation that goes on is logged again.
const REPEAT_INTERVAL: Duration = Duration::from_secs(600);
/// Pairs of sender and rule that are remembered. No more are logged within the interval, so a
/// flood from forged senders is neither logged nor does it slow the packet thread down.
const MAX_LOGGED: usize = 64;

/// What was logged, and when. Owned by one packet thread.
#[derive(Debug, Default)]
pub(crate) struct ViolationLog {
    logged: Vec<Violation>,
}

#[derive(Debug, Clone, Copy)]
struct Violation {
    sender: Ipv4Addr,
    rule: Counter,
    at: Instant,
}

impl ViolationLog {
    /// A packet passed that `rule` would have dropped.
    #[cold]
    pub(crate) fn record(&mut self, sender: Ipv4Addr, rule: Counter, packet: &Packet<'_>) {
        if self.is_due(sender, rule, Instant::now()) {
            tracing::warn!(
                event = "peer_check", peer = %sender, rule = rule.label(),
                source = %packet.source(), destination = %packet.destination(),
                "a packet passed that --peer-check=enforce would drop"
            );
        }
    }

    fn is_due(&mut self, sender: Ipv4Addr, rule: Counter, at: Instant) -> bool {
        let violation = Violation { sender, rule, at };
        let is_expired = |logged: &Violation| at - logged.at >= REPEAT_INTERVAL;
        let is_same = |logged: &Violation| logged.sender == sender && logged.rule == rule;
        let same = self.logged.iter().position(is_same);
        if let Some(place) = same.or_else(|| self.logged.iter().position(is_expired)) {
            let is_due = is_expired(&self.logged[place]);
            if is_due {
                self.logged[place] = violation;
            }
            return is_due;
        }
        let has_room = self.logged.len() < MAX_LOGGED;
        if has_room {
            self.logged.push(violation);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(0xc000_0200 + number)
    }

    #[test]
    fn each_sender_and_rule_is_logged_once_in_ten_minutes() {
        let (mut log, start) = (ViolationLog::default(), Instant::now());
        let mut due = |number, rule, seconds| {
            log.is_due(sender(number), rule, start + Duration::from_secs(seconds))
        };
        assert!(due(1, Counter::InForeignSource, 0));
        assert!(!due(1, Counter::InForeignSource, 1));
        assert!(due(1, Counter::InMartian, 1));
        assert!(due(2, Counter::InMartian, 1));
        assert!(!due(1, Counter::InForeignSource, 599));
        assert!(due(1, Counter::InForeignSource, 600));
        assert!(!due(1, Counter::InForeignSource, 601));
    }

    #[test]
    fn many_senders_cause_few_lines_and_take_little_memory() {
        let (mut log, start) = (ViolationLog::default(), Instant::now());
        let mut lines = 0;
        for round in 0..600u32 {
            for number in 0..50 {
                let now = start + Duration::from_secs(u64::from(round));
                let rule = Counter::InUnknownPeer;
                lines += u32::from(log.is_due(sender(round * 50 + number), rule, now));
            }
        }
        assert_eq!(lines, MAX_LOGGED as u32);
        assert!(log.logged.len() <= MAX_LOGGED);
    }
}
