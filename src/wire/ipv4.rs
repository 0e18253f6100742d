//! The IPv4 header (RFC 791): a checked view, and the updates that forwarding needs.

use std::net::Ipv4Addr;

/// Length of a header without options, in bytes.
pub const MIN_HEADER_LEN: usize = 20;
/// Protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// Protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;

mod field {
    pub(super) const TOS: usize = 1;
    pub(super) const TOTAL_LENGTH: usize = 2;
    pub(super) const FRAGMENT: usize = 6;
    pub(super) const TTL: usize = 8;
    pub(super) const PROTOCOL: usize = 9;
    pub(super) const CHECKSUM: usize = 10;
    pub(super) const SOURCE: usize = 12;
    pub(super) const DESTINATION: usize = 16;
}

/// A view of a packet whose IPv4 header is whole: version 4, header length at least 20 and
/// inside the total length, total length inside the bytes.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a>(&'a [u8]);

/// Why bytes are no IPv4 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Fewer bytes than the header or its total length says.
    #[error("truncated IPv4 packet")]
    Truncated,
    /// The version is not 4.
    #[error("IP version is not 4")]
    Version,
    /// The header length is below 20 or beyond the total length.
    #[error("impossible IPv4 header length")]
    HeaderLength,
}

impl<'a> Packet<'a> {
    /// Checks the header's lengths and cuts bytes behind the total length (padding).
    ///
    /// # Errors
    /// [`PacketError`] names the first check that failed.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let Some(&first) = bytes.first() else {
            return Err(PacketError::Truncated);
        };
        if first >> 4 != 4 {
            return Err(PacketError::Version);
        }
        if bytes.len() < MIN_HEADER_LEN {
            return Err(PacketError::Truncated);
        }
        let header_len = usize::from(first & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([
            bytes[field::TOTAL_LENGTH],
            bytes[field::TOTAL_LENGTH + 1],
        ]));
        if header_len < MIN_HEADER_LEN || header_len > total {
            return Err(PacketError::HeaderLength);
        }
        match bytes.get(..total) {
            Some(packet) => Ok(Self(packet)),
            None => Err(PacketError::Truncated),
        }
    }

    /// Header length in bytes: 20 to 60.
    #[must_use]
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.0[0] & 0x0f) * 4
    }

    /// Total length in bytes.
    #[must_use]
    #[inline]
    pub fn total_len(&self) -> usize {
        self.0.len()
    }

    /// The type of service byte: DSCP and ECN.
    #[must_use]
    #[inline]
    pub fn tos(&self) -> u8 {
        self.0[field::TOS]
    }

    /// Time to live.
    #[must_use]
    pub fn ttl(&self) -> u8 {
        self.0[field::TTL]
    }

    /// Protocol number.
    #[must_use]
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.0[field::PROTOCOL]
    }

    /// Whether the packet is a fragment (the first one included).
    #[must_use]
    #[inline]
    pub fn is_fragment(&self) -> bool {
        u16::from_be_bytes([self.0[field::FRAGMENT], self.0[field::FRAGMENT + 1]]) & 0x3fff != 0
    }

    /// Whether the don't-fragment flag is set.
    #[must_use]
    pub fn dont_fragment(&self) -> bool {
        self.0[field::FRAGMENT] & 0x40 != 0
    }

    /// Source address.
    #[must_use]
    #[inline]
    pub fn source(&self) -> Ipv4Addr {
        self.address(field::SOURCE)
    }

    /// Destination address.
    #[must_use]
    #[inline]
    pub fn destination(&self) -> Ipv4Addr {
        self.address(field::DESTINATION)
    }

    /// Whether the header's checksum is right.
    #[must_use]
    #[inline]
    pub fn is_header_undamaged(&self) -> bool {
        let header = &self.0[..self.header_len()];
        let Some((first, options)) = header.split_first_chunk::<MIN_HEADER_LEN>() else {
            return false;
        };
        // The sum of words of four bytes, in any byte order, folds to the same (RFC 1071);
        // fifteen of them are not more than 64 bits hold.
        let word = |at: usize| {
            let word = [first[at], first[at + 1], first[at + 2], first[at + 3]];
            u64::from(u32::from_ne_bytes(word))
        };
        let mut sum = word(0) + word(4) + word(8) + word(12) + word(16);
        for word in options.chunks_exact(4) {
            sum += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
        sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum == 0xffff
    }

    /// What follows the header.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.0[self.header_len()..]
    }

    /// The whole packet, without padding.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }

    #[inline]
    fn address(&self, at: usize) -> Ipv4Addr {
        Ipv4Addr::new(self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3])
    }
}

/// Replaces the type of service byte and updates the header checksum (RFC 1624, equation 3).
/// Does nothing to bytes shorter than a header.
pub fn set_tos(header: &mut [u8], tos: u8) {
    if header.len() < MIN_HEADER_LEN {
        return;
    }
    let old = u16::from_be_bytes([header[0], header[field::TOS]]);
    header[field::TOS] = tos;
    let new = u16::from_be_bytes([header[0], tos]);
    let check = u16::from_be_bytes([header[field::CHECKSUM], header[field::CHECKSUM + 1]]);
    let updated = updated_checksum(check, old, new);
    header[field::CHECKSUM..field::CHECKSUM + 2].copy_from_slice(&updated.to_be_bytes());
}

/// HC' = ~(~HC + ~m + m') of RFC 1624.
const fn updated_checksum(check: u16, old: u16, new: u16) -> u16 {
    let mut sum = !check as u32 + !old as u32 + new as u32;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, Ipv4Header};
    use proptest::prelude::*;

    fn packet(payload: &[u8], tos: u8, options: usize) -> Vec<u8> {
        let mut header = Ipv4Header::new(
            u16::try_from(payload.len()).unwrap(),
            64,
            IpNumber(PROTOCOL_UDP),
            [10, 0, 0, 1],
            [10, 0, 1, 1],
        )
        .unwrap();
        header.options = vec![1; options * 4].as_slice().try_into().unwrap();
        header.set_payload_len(payload.len()).unwrap();
        header.dscp = etherparse::IpDscp::try_new(tos >> 2).unwrap();
        header.ecn = etherparse::IpEcn::try_new(tos & 3).unwrap();
        header.header_checksum = header.calc_header_checksum();
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    proptest! {
        #[test]
        fn reads_what_another_library_writes(
            payload in proptest::collection::vec(any::<u8>(), 0..64),
            tos: u8,
            options in 0usize..=10,
            padding in 0usize..20,
        ) {
            let mut bytes = packet(&payload, tos, options);
            bytes.extend(std::iter::repeat_n(0xaa, padding));
            let view = Packet::new_checked(&bytes).unwrap();
            prop_assert_eq!(view.header_len(), 20 + options * 4);
            prop_assert_eq!(view.payload(), payload.as_slice());
            prop_assert_eq!(view.tos(), tos);
            prop_assert_eq!(view.ttl(), 64);
            prop_assert!(view.is_header_undamaged());
            prop_assert_eq!(view.source(), Ipv4Addr::new(10, 0, 0, 1));
            prop_assert_eq!(view.destination(), Ipv4Addr::new(10, 0, 1, 1));
        }

        #[test]
        fn a_changed_tos_keeps_the_checksum_true(before: u8, after: u8, options in 0usize..=10) {
            let mut bytes = packet(b"x", before, options);
            set_tos(&mut bytes, after);
            let (header, _) = Ipv4Header::from_slice(&bytes).unwrap();
            prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
            prop_assert_eq!(Packet::new_checked(&bytes).unwrap().tos(), after);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(view) = Packet::new_checked(&bytes) {
                prop_assert!(view.header_len() <= view.total_len());
                let _ = (view.source(), view.payload(), view.is_fragment(), view.dont_fragment());
            }
        }

        #[test]
        fn every_cut_is_refused(cut in 0usize..28) {
            let bytes = packet(b"12345678", 0, 0);
            prop_assert!(Packet::new_checked(&bytes[..cut]).is_err());
        }
    }
}
