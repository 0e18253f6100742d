//! The requests of one peer: which have arrived, and which get a reply. Pure.

use std::time::{Duration, Instant};

use crate::wire::probe::{Kind, Message, Seen};

/// Replies to one peer in a second. A peer sends a request a second; a few may come together
/// after a packet thread was delayed.
const REPLIES: u8 = 4;

/// Whether a request gets a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// It does.
    New,
    /// It came before, or is too old to tell.
    Replay,
    /// There were too many in this second.
    Excess,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ReplayWindow {
    seen: Seen,
    /// The session before this one: all that comes from it now is a replay.
    retired: u32,
    /// Latest number of a request with the length of the path.
    size_number: u32,
    /// Start of the second in which replies are counted, and their number.
    second: Option<(Instant, u8)>,
}

impl ReplayWindow {
    /// The requests that have arrived, to be reported to the peer.
    pub(super) const fn seen(&self) -> Seen {
        self.seen
    }

    /// Takes in a request.
    pub(super) fn check(&mut self, request: &Message, at: Instant) -> Check {
        if request.session == self.retired {
            return Check::Replay;
        }
        if request.session != self.seen.session {
            self.retired = self.seen.session;
            self.size_number = 0;
            self.seen = Seen {
                session: request.session,
                latest: request.number,
                mask: 0,
            };
        }
        let is_new = match request.kind {
            Kind::SizeRequest => self.note_size(request.number),
            _ => self.note(request.number),
        };
        match (is_new, self.may_reply(at)) {
            (false, _) => Check::Replay,
            (true, true) => Check::New,
            (true, false) => Check::Excess,
        }
    }

    fn note(&mut self, number: u32) -> bool {
        let seen = &mut self.seen;
        let ahead = number.wrapping_sub(seen.latest);
        if (1..1 << 31).contains(&ahead) {
            seen.mask = seen.mask.checked_shl(ahead).unwrap_or(0) | 1;
            seen.latest = number;
            return true;
        }
        let bit = 1u32.checked_shl(ahead.wrapping_neg()).unwrap_or(0);
        let is_new = bit != 0 && seen.mask & bit == 0;
        seen.mask |= bit;
        is_new
    }

    const fn note_size(&mut self, number: u32) -> bool {
        let is_new = number.wrapping_sub(self.size_number).wrapping_sub(1) < 1 << 31;
        if is_new {
            self.size_number = number;
        }
        is_new
    }

    fn may_reply(&mut self, at: Instant) -> bool {
        match &mut self.second {
            Some((since, count))
                if at.saturating_duration_since(*since) < Duration::from_secs(1) =>
            {
                *count = count.saturating_add(1);
                *count <= REPLIES
            }
            second => {
                *second = Some((at, 1));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(session: u32, number: u32) -> Message {
        Message {
            kind: Kind::Request,
            length: 84,
            nonce: 1,
            session,
            number,
            seen: Seen::default(),
            held: 0,
        }
    }

    fn size_request(session: u32, number: u32) -> Message {
        Message {
            kind: Kind::SizeRequest,
            ..request(session, number)
        }
    }

    #[test]
    fn each_request_gets_one_reply_in_any_order() {
        let (mut window, mut now) = (ReplayWindow::default(), Instant::now());
        let mut check = |message: &Message| {
            now += Duration::from_secs(1);
            (
                window.check(message, now),
                window.seen().latest,
                window.seen().mask,
            )
        };
        use Check::{New, Replay};
        assert_eq!(check(&request(7, 5)), (New, 5, 0b1));
        assert_eq!(check(&request(7, 5)), (Replay, 5, 0b1));
        assert_eq!(check(&request(7, 8)), (New, 8, 0b1001));
        assert_eq!(check(&request(7, 6)), (New, 8, 0b1101));
        assert_eq!(check(&request(7, 6)), (Replay, 8, 0b1101));
        assert_eq!(check(&request(7, 100)), (New, 100, 0b1));
        assert_eq!(check(&request(7, 50)).0, Replay, "older than is known");
        assert_eq!(check(&size_request(7, 1)), (New, 100, 0b1));
        assert_eq!(check(&size_request(7, 1)).0, Replay);
        assert_eq!(check(&size_request(7, 3)).0, New);
        assert_eq!(check(&size_request(7, 2)).0, Replay);
        // The peer was restarted: its earlier session is over.
        assert_eq!(check(&request(8, 1)), (New, 1, 0b1));
        assert_eq!(check(&request(7, 101)), (Replay, 1, 0b1));
        assert_eq!(check(&size_request(8, 1)).0, New);
    }

    #[test]
    fn a_flood_gets_a_few_replies_a_second() {
        let (mut window, start) = (ReplayWindow::default(), Instant::now());
        for second in 0..3 {
            let now = start + Duration::from_secs(second.into());
            let replies = (1..=1000).filter(|number| {
                let request = request(7, second * 1000 + number);
                window.check(&request, now) == Check::New
            });
            assert_eq!(replies.count(), usize::from(REPLIES));
        }
        // Requests without a reply have arrived as well.
        assert_eq!(window.seen().mask, u32::MAX);
    }
}
