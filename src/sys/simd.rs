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
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi64, _mm256_and_si256, _mm256_loadu_si256, _mm256_set1_epi64x,
        _mm256_setzero_si256, _mm256_srli_epi64, _mm256_storeu_si256,
    };

    use crate::wire::checksum;

    /// Below this the vector code has no advantage.
    const WORTHWHILE: usize = 256;

    /// Only reachable through [`super::checksummer`], after it found AVX2.
    pub(super) fn sum(bytes: &[u8]) -> u64 {
        if bytes.len() < WORTHWHILE {
            return checksum::sum_portable(bytes);
        }
        // SAFETY: the one place that hands out this function has just asked the CPU for
        // AVX2, and a CPU does not lose it.
        unsafe { sum_avx2(bytes) }
    }

    /// Adds 32-bit words into 64-bit lanes, where carries have room: exact up to 2^32
    /// words a lane.
    #[target_feature(enable = "avx2")]
    fn sum_avx2(bytes: &[u8]) -> u64 {
        let (blocks, rest) = bytes.as_chunks::<128>();
        let mask = _mm256_set1_epi64x(0xffff_ffff);
        let mut low = [_mm256_setzero_si256(); 2];
        let mut high = [_mm256_setzero_si256(); 2];
        for block in blocks {
            let (vectors, _) = block.as_chunks::<32>();
            for (index, vector) in vectors.iter().enumerate() {
                let words = load(vector);
                let lane = index % 2;
                low[lane] = _mm256_add_epi64(low[lane], _mm256_and_si256(words, mask));
                high[lane] = _mm256_add_epi64(high[lane], _mm256_srli_epi64::<32>(words));
            }
        }
        let low = _mm256_add_epi64(low[0], low[1]);
        let high = _mm256_add_epi64(high[0], high[1]);
        let lanes = store(_mm256_add_epi64(low, high));
        let sum = lanes
            .iter()
            .fold(0u64, |sum, lane| sum + (lane & 0xffff_ffff) + (lane >> 32));
        sum + checksum::sum_portable(rest)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8; 32]) -> __m256i {
        // SAFETY: the reference is valid for 32 bytes, and this load needs no alignment.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(vector: __m256i) -> [u64; 4] {
        let mut lanes = [0u64; 4];
        // SAFETY: the array has room for 32 bytes, and this store needs no alignment.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), vector) };
        lanes
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
