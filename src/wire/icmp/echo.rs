//! ICMP echo (RFC 792): builds requests, and parses what a raw socket receives.

use crate::wire::checksum::Sum;

/// Length of the ICMP header.
pub const HEADER_LEN: usize = 8;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// An echo request, without IP header.
#[must_use]
pub fn request(identifier: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![ECHO_REQUEST, 0, 0, 0];
    packet.extend(identifier.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend(payload);
    let checksum = Sum::of(&packet).finish();
    packet[2..4].copy_from_slice(&checksum);
    packet
}

/// An ICMP message as a raw socket receives it, with the IPv4 header (`raw(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received<'a> {
    /// Source address.
    pub source: [u8; 4],
    /// TTL on arrival.
    pub ttl: u8,
    kind: u8,
    code: u8,
    identifier: u16,
    sequence: u16,
    body: &'a [u8],
}

/// How a message relates to an echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// The reply, unchanged.
    Reply,
    /// A reply with another payload.
    Corrupted,
    /// An error, with type and code, about a request with the same identifier.
    Error(u8, u8),
    /// Any other message.
    Unrelated,
}

impl<'a> Received<'a> {
    /// Parses a packet; `None` if it is too short.
    #[must_use]
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let ttl = *packet.get(8)?;
        let source = *packet.get(12..16)?.first_chunk()?;
        let header_len = usize::from(packet.first()? & 0x0f) * 4;
        if header_len < 20 {
            return None;
        }
        let (header, body) = packet.get(header_len..)?.split_at_checked(HEADER_LEN)?;
        let &[kind, code, _, _, id_high, id_low, seq_high, seq_low] = header else {
            return None;
        };
        Some(Self {
            source,
            ttl,
            kind,
            code,
            identifier: u16::from_be_bytes([id_high, id_low]),
            sequence: u16::from_be_bytes([seq_high, seq_low]),
            body,
        })
    }

    /// Sequence number and payload, if it is a reply to this identifier.
    #[must_use]
    pub fn reply(&self, identifier: u16) -> Option<(u16, &'a [u8])> {
        (self.kind == ECHO_REPLY && self.identifier == identifier)
            .then_some((self.sequence, self.body))
    }

    /// How it relates to a request.
    #[must_use]
    pub fn relation(&self, identifier: u16, sequence: u16, payload: &[u8]) -> Relation {
        let ours = (self.identifier, self.sequence) == (identifier, sequence);
        match self.kind {
            ECHO_REPLY if ours && self.body == payload => Relation::Reply,
            ECHO_REPLY if ours => Relation::Corrupted,
            ECHO_REPLY | ECHO_REQUEST => Relation::Unrelated,
            // An error contains the packet that caused it, here an echo request.
            _ => match Self::parse(self.body) {
                Some(about) if about.kind == ECHO_REQUEST && about.identifier == identifier => {
                    Relation::Error(self.kind, self.code)
                }
                _ => Relation::Unrelated,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_the_wire(ttl: u8, icmp: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, ttl, 1];
        packet.resize(20, 0);
        packet.extend(icmp);
        packet
    }

    fn reply(payload: &[u8]) -> Vec<u8> {
        let mut icmp = request(7, 3, payload);
        icmp[0] = ECHO_REPLY;
        on_the_wire(62, &icmp)
    }

    fn relation(packet: &[u8]) -> Option<Relation> {
        Received::parse(packet).map(|message| message.relation(7, 3, b"hello"))
    }

    #[test]
    fn the_checksum_of_a_request_verifies() {
        for payload in [&b""[..], b"odd", b"even"] {
            assert!(Sum::of(&request(1, 2, payload)).is_valid());
        }
    }

    #[test]
    fn replies_are_compared_whole() {
        let good = reply(b"hello");
        assert_eq!(relation(&good), Some(Relation::Reply));
        let read = Received::parse(&good).unwrap();
        assert_eq!((read.ttl, read.reply(7)), (62, Some((3, &b"hello"[..]))));
        assert_eq!(read.reply(8), None);
        for other in [&b"hellO"[..], b"hell", b"hello "] {
            assert_eq!(relation(&reply(other)), Some(Relation::Corrupted));
        }
    }

    #[test]
    fn only_errors_about_our_requests_count() {
        let error = |identifier| {
            let mut icmp = vec![3, 1, 0, 0, 0, 0, 0, 0];
            icmp.extend(on_the_wire(63, &request(identifier, 3, b"hello")));
            on_the_wire(64, &icmp)
        };
        assert_eq!(relation(&error(7)), Some(Relation::Error(3, 1)));
        assert_eq!(relation(&error(8)), Some(Relation::Unrelated));
    }

    #[test]
    fn short_packets_are_no_messages() {
        let whole = reply(b"");
        for length in 0..whole.len() {
            assert!(Received::parse(&whole[..length]).is_none(), "{length}");
        }
        let mut impossible = whole;
        impossible[0] = 0x44;
        assert_eq!(Received::parse(&impossible), None);
    }
}
