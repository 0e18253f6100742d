//! The Internet checksum (RFC 1071).
//!
//! Sums are kept in the machine's byte order, which RFC 1071 section 2(B) allows: the
//! words are added as they lie in memory and the result is stored back as it lies.
//! So a checksum is `[u8; 2]` here, the two bytes of its field, and never a number
//! that somebody could swap once too often.

use std::ops::{Add, AddAssign};

/// A one's complement sum of 16-bit words in the machine's order, not yet folded.
///
/// Room for 2^31 additions, which no packet reaches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// Sums `bytes` from an even offset; a last odd byte is padded with zero. Meant for
    /// headers: payloads go through a [`Checksummer`].
    #[inline]
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(reduce(sum_portable(bytes)))
    }

    /// The sum of one 16-bit field, given as its value.
    #[inline]
    #[must_use]
    pub const fn of_u16(value: u16) -> Self {
        Self(u16::from_ne_bytes(value.to_be_bytes()) as u64)
    }

    /// The sum of one 32-bit field, given as its value.
    #[inline]
    #[must_use]
    pub const fn of_u32(value: u32) -> Self {
        Self(u32::from_ne_bytes(value.to_be_bytes()) as u64)
    }

    /// Folds the carries in: the 16-bit sum as the two bytes of a field, not
    /// complemented. This is what a field holds while its checksum is left to others
    /// (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    #[inline]
    #[must_use]
    pub const fn fold(self) -> [u8; 2] {
        self.fold_native().to_ne_bytes()
    }

    /// The finished checksum: folded and complemented, as the two bytes of its field.
    #[inline]
    #[must_use]
    pub const fn finish(self) -> [u8; 2] {
        (!self.fold_native()).to_ne_bytes()
    }

    /// The finished checksum of UDP, where a field of zero means "none", so that a
    /// checksum of zero is sent as all ones (RFC 768).
    #[inline]
    #[must_use]
    pub const fn finish_udp(self) -> [u8; 2] {
        match self.finish() {
            [0, 0] => [0xff, 0xff],
            check => check,
        }
    }

    /// Whether a sum that covered its own checksum field says "undamaged".
    #[inline]
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.fold_native() == 0xffff
    }

    const fn fold_native(self) -> u16 {
        let mut sum = reduce(self.0);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }
}

impl Add for Sum {
    type Output = Self;

    #[inline]
    fn add(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
}

impl AddAssign for Sum {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// Brings a 64-bit one's complement sum to at most 2^32, so that sums of sums have room.
#[inline]
const fn reduce(sum: u64) -> u64 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// How payload bytes are summed: a handle to one of the equal implementations.
///
/// `wire` knows only the portable one; who knows the machine (`sys::simd`) hands in a
/// faster one, and everything that sums payload takes this handle.
#[derive(Clone, Copy, Debug)]
pub struct Checksummer(fn(&[u8]) -> u64);

impl Checksummer {
    /// Plain integer code for every machine.
    pub const PORTABLE: Self = Self(sum_portable);

    /// Uses `sum`, which must return the same one's complement sum of 16-bit words in
    /// the machine's order as [`sum_portable`], up to multiples of 65535.
    #[must_use]
    pub const fn new(sum: fn(&[u8]) -> u64) -> Self {
        Self(sum)
    }

    /// Sums `bytes` from an even offset; a last odd byte is padded with zero.
    #[inline]
    #[must_use]
    pub fn sum(self, bytes: &[u8]) -> Sum {
        Sum(reduce((self.0)(bytes)))
    }
}

impl Default for Checksummer {
    fn default() -> Self {
        Self::PORTABLE
    }
}

/// Sums 16-bit words eight bytes at a time, counting the carries; the result is a one's
/// complement sum that still has to be folded.
#[must_use]
pub fn sum_portable(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<64>();
    // Two chains, so that one addition need not wait for the carry of the other.
    let (mut even, mut odd) = (0u128, 0u128);
    for block in blocks {
        let (words, _) = block.as_chunks::<16>();
        for word in words {
            let both = u128::from_ne_bytes(*word);
            even += both & u128::from(u64::MAX);
            odd += both >> 64;
        }
    }
    let sum = even + odd;
    let high = (sum >> 64) as u64;
    let low = sum as u64;
    reduce(low) + reduce(high) + sum_short(rest)
}

/// Sums fewer than some hundred bytes.
#[inline]
fn sum_short(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut sum = 0u64;
    for word in words {
        let word = u64::from_ne_bytes(*word);
        sum += (word & 0xffff_ffff) + (word >> 32);
    }
    let (words, rest) = rest.as_chunks::<2>();
    for word in words {
        sum += u64::from(u16::from_ne_bytes(*word));
    }
    if let [last] = rest {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    sum
}

/// The checksum after one 16-bit word under it changed from `old` to `new`, all three
/// as bytes of their fields (RFC 1624, equation 3).
#[inline]
#[must_use]
pub const fn update(check: [u8; 2], old: [u8; 2], new: [u8; 2]) -> [u8; 2] {
    let check = !u16::from_ne_bytes(check);
    let old = !u16::from_ne_bytes(old);
    let new = u16::from_ne_bytes(new);
    Sum(check as u64 + old as u64 + new as u64).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 as it is written: big-endian 16-bit words, one by one.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).fold(), [0xdd, 0xf2]);
        assert_eq!(Sum::of(&bytes).finish(), [0x22, 0x0d]);
    }

    #[test]
    fn largest_words_of_all_lengths_carry_right() {
        let ones = vec![0xff; 70_000];
        for len in (0..=300).chain([1500, 65_535, 70_000]) {
            let expected = naive(&ones[..len]).to_be_bytes();
            assert_eq!(Sum::of(&ones[..len]).fold(), expected, "{len} bytes");
        }
    }

    #[test]
    fn udp_never_sends_zero() {
        assert_eq!(Sum::of(&[0xff, 0xff]).finish(), [0, 0]);
        assert_eq!(Sum::of(&[0xff, 0xff]).finish_udp(), [0xff, 0xff]);
        assert_eq!(Sum::of(&[0x12, 0x34]).finish_udp(), [0xed, 0xcb]);
    }

    proptest! {
        #[test]
        fn equals_naive_for_all_lengths(bytes in prop::collection::vec(any::<u8>(), 300)) {
            for len in 0..=bytes.len() {
                for start in 0..=(bytes.len() - len).min(3) {
                    let part = &bytes[start..start + len];
                    let expected = naive(part).to_be_bytes();
                    prop_assert_eq!(Checksummer::PORTABLE.sum(part).fold(), expected);
                    }
            }
        }

        #[test]
        fn update_equals_a_new_sum(
            mut bytes in prop::collection::vec(any::<u8>(), 4..64),
            at in any::<prop::sample::Index>(),
            new in any::<[u8; 2]>(),
        ) {
            // Some word besides the changed one is not zero, as in every real header.
            bytes.extend([0x45, 0x00]);
            if bytes.len() % 2 == 1 {
                bytes.insert(0, 0);
            }
            let at = at.index((bytes.len() - 2) / 2) * 2;
            let before = Sum::of(&bytes).finish();
            let old = [bytes[at], bytes[at + 1]];
            bytes[at..at + 2].copy_from_slice(&new);
            prop_assert_eq!(update(before, old, new), Sum::of(&bytes).finish());
        }

        #[test]
        fn a_sum_over_its_own_checksum_is_valid(mut bytes in prop::collection::vec(any::<u8>(), 2..100)) {
            bytes[0] = 0;
            bytes[1] = 0;
            bytes.extend([0x45, 0]);
            let check = Sum::of(&bytes).finish();
            bytes[..2].copy_from_slice(&check);
            prop_assert!(Sum::of(&bytes).is_valid());
            bytes[0] ^= 1;
            prop_assert!(!Sum::of(&bytes).is_valid());
        }
    }
}
