//! The fastest checksum code for the machine at hand.

use crate::wire::checksum::Checksummer;

/// Picks an implementation of the Internet checksum by what the CPU offers: AVX2 on
/// x86-64, else the portable one. Ask once and keep the handle.
#[must_use]
pub fn checksummer() -> Checksummer {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return Checksummer::new(x86::sum);
    }
    Checksummer::PORTABLE
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use crate::wire::checksum;

    /// Only reachable through [`super::checksummer`], after it found AVX2.
    pub(super) fn sum(bytes: &[u8]) -> u64 {
        // SAFETY: the one place that hands out this function has just asked the CPU for
        // AVX2, and a CPU does not lose it.
        unsafe { sum_avx2(bytes) }
    }

    // The lanes become 256-bit additions here, because this function may use them.
    #[target_feature(enable = "avx2")]
    fn sum_avx2(bytes: &[u8]) -> u64 {
        checksum::sum_lanes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_the_portable_sum(
            bytes in prop::collection::vec(any::<u8>(), 0..4000),
            start in 0..8usize,
        ) {
            let part = bytes.get(start..).unwrap_or_default();
            let expected = Checksummer::PORTABLE.sum(part).fold();
            prop_assert_eq!(checksummer().sum(part).fold(), expected);
        }
    }

    #[test]
    fn largest_words_carry_right() {
        let ones = vec![0xff; 70_000];
        for len in (0..300).chain([65_535, 70_000]) {
            let expected = Checksummer::PORTABLE.sum(&ones[..len]).fold();
            assert_eq!(checksummer().sum(&ones[..len]).fold(), expected, "{len}");
        }
    }
}
