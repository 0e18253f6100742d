//! Probes between nodes of ours, inside of the tunnel: an Ethernet frame of a type of its own,
//! so that no IP stack has to do with it. Sent only to who publishes that it answers.
//!
//! ```text
//!  0      "uvxp"                                 4 bytes
//!  4      version, kind                          1 + 1
//!  6      length of all of this, padding too     2
//!  8      nonce, repeated by the reply           8
//! 16      session and number of the request      4 + 4
//! 24      seen: session, latest number, mask     4 + 4 + 4
//! 36      microseconds that the reply was held   4
//! 40      padding, of any content
//! ```
//!
//! `seen` is what the sender of this message has got of the receiver's requests: bit `i` of
//! the mask stands for the request before the latest by `i`. It tells on which of both ways a
//! request was lost.

use super::ethernet::{self, ETHERTYPE_EXPERIMENTAL};
use super::vxlan::{self, ENCAP_LEN};
use super::{MacAddr, Vni};

/// Length without padding.
pub const HEADER_LEN: usize = 40;
/// The version that is spoken, and published in leases.
pub const VERSION: u8 = 1;

const MAGIC: [u8; 4] = *b"uvxp";

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Are you there? Numbered, for the count of losses.
    Request,
    /// To [`Kind::Request`], of the same length.
    Reply,
    /// Does this length pass? Numbered apart: it may well be lost.
    SizeRequest,
    /// To [`Kind::SizeRequest`], of the same length.
    SizeReply,
}

impl Kind {
    const ALL: [Self; 4] = [
        Self::Request,
        Self::Reply,
        Self::SizeRequest,
        Self::SizeReply,
    ];

    const fn number(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Reply => 2,
            Self::SizeRequest => 3,
            Self::SizeReply => 4,
        }
    }

    /// What answers it; none to what is an answer itself, so that nothing goes in circles.
    #[must_use]
    pub const fn reply(self) -> Option<Self> {
        match self {
            Self::Request => Some(Self::Reply),
            Self::SizeRequest => Some(Self::SizeReply),
            Self::Reply | Self::SizeReply => None,
        }
    }
}

/// Which requests of one session have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// The session, by its sender's choice; 0 is none.
    pub session: u32,
    /// The latest number.
    pub latest: u32,
    /// Bit `i`: whether the request with the number `latest - i` has arrived.
    pub mask: u32,
}

/// A message without its padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// Its length with padding, in bytes: as an inner IP packet's.
    pub length: u16,
    /// Known only to who asks, until it asks.
    pub nonce: u64,
    /// Session of the request.
    pub session: u32,
    /// Number of the request.
    pub number: u32,
    /// What has arrived from the receiver of this message.
    pub seen: Seen,
    /// Of a reply, how long its sender kept the request, in microseconds.
    pub held: u32,
}

impl Message {
    /// Reads what follows the Ethernet header; `None` where it is no whole message of this
    /// version. What comes behind the length is ignored.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let head: &[u8; HEADER_LEN] = bytes.first_chunk()?;
        let (magic, rest) = head.split_first_chunk::<4>()?;
        let (&[version, kind, high, low], rest) = rest.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let mut words = rest.chunks_exact(4).map(|word| match *word {
            [a, b, c, d] => u32::from_be_bytes([a, b, c, d]),
            _ => 0,
        });
        let length = u16::from_be_bytes([high, low]);
        let fits = (HEADER_LEN..=bytes.len()).contains(&usize::from(length));
        if *magic != MAGIC || version != VERSION || !fits {
            return None;
        }
        Some(Self {
            kind: Kind::ALL.into_iter().find(|known| known.number() == kind)?,
            length,
            nonce: u64::from_be_bytes(*nonce),
            session: words.next()?,
            number: words.next()?,
            seen: Seen {
                session: words.next()?,
                latest: words.next()?,
                mask: words.next()?,
            },
            held: words.next()?,
        })
    }

    /// The whole datagram from one VTEP to another, padded with zeros.
    #[must_use]
    pub fn datagram(&self, vni: Vni, from: MacAddr, to: MacAddr) -> Vec<u8> {
        let length = usize::from(self.length).max(HEADER_LEN);
        let mut bytes = Vec::with_capacity(ENCAP_LEN + length);
        bytes.extend(vxlan::header(vni));
        bytes.extend(ethernet::header(to, from, ETHERTYPE_EXPERIMENTAL));
        bytes.extend(MAGIC);
        bytes.extend([VERSION, self.kind.number()]);
        bytes.extend(self.length.to_be_bytes());
        bytes.extend(self.nonce.to_be_bytes());
        for word in [
            self.session,
            self.number,
            self.seen.session,
            self.seen.latest,
            self.seen.mask,
            self.held,
        ] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.resize(ENCAP_LEN + length, 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: Kind, length: u16) -> Message {
        Message {
            kind,
            length,
            nonce: 0x0102_0304_0506_0708,
            session: 9,
            number: 10,
            seen: Seen {
                session: 11,
                latest: 12,
                mask: 13,
            },
            held: 14,
        }
    }

    fn datagram(message: &Message) -> Vec<u8> {
        let mac = |last| MacAddr([2, 0, 0, 0, 0, last]);
        message.datagram(Vni::DEFAULT, mac(1), mac(2))
    }

    #[test]
    fn what_is_written_is_read_and_nothing_shorter() {
        for kind in Kind::ALL {
            for length in [40, 84, 1450] {
                let message = message(kind, length);
                let bytes = datagram(&message);
                assert_eq!(bytes.len(), ENCAP_LEN + usize::from(length));
                let inner = &bytes[ENCAP_LEN..];
                assert_eq!(Message::parse(inner), Some(message));
                for cut in 0..inner.len() {
                    assert_eq!(Message::parse(&inner[..cut]), None, "{cut}");
                }
                let padded = [inner, &[7; 18]].concat();
                assert_eq!(Message::parse(&padded), Some(message));
            }
        }
    }

    #[test]
    fn other_versions_kinds_and_lengths_are_nothing() {
        let good = datagram(&message(Kind::Request, 84))[ENCAP_LEN..].to_vec();
        for (at, value) in [(0, b'U'), (4, 0), (4, 2), (5, 0), (5, 5), (6, 1), (7, 39)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert_eq!(Message::parse(&bytes), None, "byte {at} = {value}");
        }
    }

    #[test]
    fn only_requests_have_replies() {
        let replies = Kind::ALL.map(Kind::reply);
        let expected = [Some(Kind::Reply), None, Some(Kind::SizeReply), None];
        assert_eq!(replies, expected);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::parse(&bytes);
            let mut head = b"uvxp\x01\x01".to_vec();
            head.extend(bytes);
            if let Some(message) = Message::parse(&head) {
                prop_assert!(usize::from(message.length) <= head.len());
            }
        }
    }
}
