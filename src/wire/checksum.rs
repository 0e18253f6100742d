//! The Internet checksum (RFC 1071), in native byte order.
//!
//! Sums are taken over 16-bit words as the machine loads them; RFC 1071 section 2(B) says
//! that swapping bytes at the end, by storing the result in native order, is the same.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A partial sum that is not folded yet. Sums of pieces add up when every piece but the
/// last has an even length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u64);

/// How long runs of bytes are summed: portable, or with what this processor has (see
/// `sys::simd`). Every implementation gives the same checksum.
#[derive(Debug, Clone, Copy)]
pub struct Summer(fn(&[u8]) -> u64);

impl Summer {
    /// The implementation for every processor.
    pub const PORTABLE: Self = Self(portable);

    /// An implementation: it returns any 64-bit value congruent, modulo 65,535, to the sum
    /// of the native 16-bit words, an odd last byte taken as a word with a zero behind it,
    /// and nonzero when a word is.
    #[must_use]
    pub const fn new(implementation: fn(&[u8]) -> u64) -> Self {
        Self(implementation)
    }

    /// Sums a piece.
    #[must_use]
    #[inline]
    pub fn sum(self, bytes: &[u8]) -> Sum {
        Sum((self.0)(bytes))
    }
}

impl Default for Summer {
    fn default() -> Self {
        Self::PORTABLE
    }
}

impl Sum {
    /// Adds another piece's sum.
    #[must_use]
    #[inline]
    pub const fn plus(self, other: Self) -> Self {
        let (sum, carry) = self.0.overflowing_add(other.0);
        Self(sum + carry as u64)
    }

    /// Adds a 16-bit number, as it stands in a header.
    #[must_use]
    #[inline]
    pub const fn plus_word(self, word: u16) -> Self {
        self.plus(Self(word.to_be() as u64))
    }

    /// Adds a 32-bit number, as it stands in a header.
    #[must_use]
    #[inline]
    pub const fn plus_long(self, long: u32) -> Self {
        self.plus(Self(long.to_be() as u64))
    }

    /// Takes away a piece's sum that was added before.
    #[must_use]
    #[inline]
    pub const fn minus(self, other: Self) -> Self {
        self.plus(Self(!other.fold_native() as u64 & 0xffff))
    }

    const fn fold_native(self) -> u16 {
        let mut sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }

    /// The sum as a header holds it while the checksum is unfinished: folded, not
    /// complemented.
    #[must_use]
    #[inline]
    pub const fn folded(self) -> u16 {
        self.fold_native().to_be()
    }

    /// The checksum as a number; store it with `to_be_bytes`.
    #[must_use]
    #[inline]
    pub const fn checksum(self) -> u16 {
        !self.folded()
    }

    /// Whether bytes with their checksum among them add up.
    #[must_use]
    #[inline]
    pub const fn is_valid(self) -> bool {
        self.fold_native() == 0xffff
    }
}

/// The checksum of UDP: 0 would say "none" (RFC 768).
#[must_use]
#[inline]
pub const fn nonzero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// The pseudo header of TCP and UDP over IPv4; `len` is that of the whole segment.
#[must_use]
#[inline]
pub fn pseudo_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, len: u16) -> Sum {
    Sum::default()
        .plus_long(source.to_bits())
        .plus_long(destination.to_bits())
        .plus_word(u16::from(protocol))
        .plus_word(len)
}

/// The pseudo header of TCP and UDP over IPv6 (RFC 8200 section 8.1).
#[must_use]
#[inline]
pub fn pseudo_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, len: u32) -> Sum {
    let addresses = [source.octets(), destination.octets()];
    Sum(portable(addresses.as_flattened()))
        .plus_long(len)
        .plus_word(u16::from(protocol))
}

/// Four lanes of 64 bits, each taking 32-bit halves: no carry is lost in 2^32 steps, more
/// than any packet has.
fn portable(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 4];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            let word = u64::from_ne_bytes(*word);
            *lane += (word & 0xffff_ffff) + (word >> 32);
        }
    }
    lanes.iter().sum::<u64>() + tail(rest)
}

/// The sum of fewer than some dozen bytes.
pub fn tail(bytes: &[u8]) -> u64 {
    let (words, odd) = bytes.as_chunks::<2>();
    let sum: u64 = words
        .iter()
        .map(|word| u64::from(u16::from_ne_bytes(*word)))
        .sum();
    match odd {
        [last] => sum + u64::from(u16::from_ne_bytes([*last, 0])),
        _ => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 4.1, word by word in network order.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Summer::PORTABLE.sum(&bytes).folded(), 0xddf2);
    }

    #[test]
    fn full_words_carry_around() {
        for len in 0..200 {
            let bytes = vec![0xff; len];
            assert_eq!(
                Summer::PORTABLE.sum(&bytes).checksum(),
                naive(&bytes),
                "{len}"
            );
        }
    }

    proptest! {
        #[test]
        fn equals_the_naive_sum(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..400) {
            let summer = Summer::PORTABLE;
            prop_assert_eq!(summer.sum(&bytes).checksum(), naive(&bytes));
            let cut = cut.min(bytes.len()) & !1;
            let (first, second) = bytes.split_at(cut);
            let joined = summer.sum(first).plus(summer.sum(second));
            prop_assert_eq!(joined.checksum(), naive(&bytes));
            prop_assert_eq!(joined.minus(summer.sum(first)).checksum() % 0xffff, naive(second) % 0xffff);
        }

        #[test]
        fn a_stored_checksum_is_valid(bytes in proptest::collection::vec(any::<u8>(), 2..100)) {
            let mut bytes = bytes;
            bytes[..2].fill(0);
            let checksum = Summer::PORTABLE.sum(&bytes).checksum();
            bytes[..2].copy_from_slice(&checksum.to_be_bytes());
            prop_assert!(Summer::PORTABLE.sum(&bytes).is_valid());
        }

        #[test]
        fn pseudo_headers_are_those_of_another_library(s: u32, d: u32, payload in proptest::collection::vec(any::<u8>(), 0..50)) {
            let (source, destination) = (Ipv4Addr::from_bits(s), Ipv4Addr::from_bits(d));
            let header = etherparse::UdpHeader::with_ipv4_checksum(7, 9,
                &etherparse::Ipv4Header::new(0, 1, etherparse::IpNumber::UDP, source.octets(), destination.octets()).unwrap(),
                &payload).unwrap();
            let len = u16::try_from(payload.len() + 8).unwrap();
            let sum = pseudo_v4(source, destination, 17, len)
                .plus_word(7).plus_word(9).plus_word(len).plus(Summer::PORTABLE.sum(&payload));
            prop_assert_eq!(nonzero(sum.checksum()), header.checksum);
            let v6 = etherparse::Ipv6Header { source: [s as u8; 16], destination: [d as u8; 16], ..Default::default() };
            let header = etherparse::UdpHeader::with_ipv6_checksum(7, 9, &v6, &payload).unwrap();
            let sum = pseudo_v6([s as u8; 16].into(), [d as u8; 16].into(), 17, u32::from(len))
                .plus_word(7).plus_word(9).plus_word(len).plus(Summer::PORTABLE.sum(&payload));
            prop_assert_eq!(nonzero(sum.checksum()), header.checksum);
        }
    }
}
