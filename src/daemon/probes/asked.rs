//! What one peer asked us: which of its requests have arrived, and which are answered. Pure.

use std::time::{Duration, Instant};

use crate::wire::probe::{Kind, Message, Seen};

/// Answers to one peer in one second. A peer asks once in a second; a few may come together
/// where a packet thread was away.
const ANSWERS: u8 = 4;

/// Whether a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// It is.
    Answer,
    /// It came before.
    Replay,
    /// There were too many in this second.
    Excess,
}

/// The requests of one peer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked {
    seen: Seen,
    /// The session before: what comes from it now is a copy.
    retired: u32,
    /// Latest number of those for the length of the path.
    size_number: u32,
    /// Since when answers are counted, and how many there were.
    second: Option<(Instant, u8)>,
}

impl Asked {
    /// Which of them have arrived, to be told to the peer.
    #[must_use]
    pub const fn seen(&self) -> Seen {
        self.seen
    }

    /// A request came.
    pub fn take(&mut self, request: &Message, at: Instant) -> Judged {
        if request.session == self.retired {
            return Judged::Replay;
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
        match (is_new, self.may_answer(at)) {
            (false, _) => Judged::Replay,
            (true, true) => Judged::Answer,
            (true, false) => Judged::Excess,
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

    fn may_answer(&mut self, at: Instant) -> bool {
        match &mut self.second {
            Some((since, count))
                if at.saturating_duration_since(*since) < Duration::from_secs(1) =>
            {
                *count = count.saturating_add(1);
                *count <= ANSWERS
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
    fn each_is_answered_once_in_whatever_order_they_come() {
        let (mut asked, mut now) = (Asked::default(), Instant::now());
        let mut judged = |message: &Message| {
            now += Duration::from_secs(1);
            (
                asked.take(message, now),
                asked.seen().latest,
                asked.seen().mask,
            )
        };
        use Judged::{Answer, Replay};
        assert_eq!(judged(&request(7, 5)), (Answer, 5, 0b1));
        assert_eq!(judged(&request(7, 5)), (Replay, 5, 0b1));
        assert_eq!(judged(&request(7, 8)), (Answer, 8, 0b1001));
        assert_eq!(judged(&request(7, 6)), (Answer, 8, 0b1101));
        assert_eq!(judged(&request(7, 6)), (Replay, 8, 0b1101));
        assert_eq!(judged(&request(7, 100)), (Answer, 100, 0b1));
        assert_eq!(judged(&request(7, 50)).0, Replay, "older than is known");
        assert_eq!(judged(&size_request(7, 1)), (Answer, 100, 0b1));
        assert_eq!(judged(&size_request(7, 1)).0, Replay);
        assert_eq!(judged(&size_request(7, 3)).0, Answer);
        assert_eq!(judged(&size_request(7, 2)).0, Replay);
        // The peer was started anew; what it said before is old.
        assert_eq!(judged(&request(8, 1)), (Answer, 1, 0b1));
        assert_eq!(judged(&request(7, 101)), (Replay, 1, 0b1));
        assert_eq!(judged(&size_request(8, 1)).0, Answer);
    }

    #[test]
    fn a_flood_gets_a_few_answers_a_second() {
        let (mut asked, start) = (Asked::default(), Instant::now());
        for second in 0..3 {
            let now = start + Duration::from_secs(second.into());
            let answers = (1..=1000).filter(|number| {
                let request = request(7, second * 1000 + number);
                asked.take(&request, now) == Judged::Answer
            });
            assert_eq!(answers.count(), usize::from(ANSWERS));
        }
        // What was not answered has arrived all the same.
        assert_eq!(asked.seen().mask, u32::MAX);
    }
}
