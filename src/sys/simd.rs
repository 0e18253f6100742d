//! What this processor has for long sums, found at run time.

use crate::wire::checksum::Summer;

/// The fastest way to sum on this processor.
#[must_use]
pub fn summer() -> Summer {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return Summer::new(x86_64::sum);
    }
    Summer::PORTABLE
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi64, _mm256_and_si256, _mm256_loadu_si256, _mm256_set1_epi64x,
        _mm256_setzero_si256, _mm256_srli_epi64, _mm256_storeu_si256,
    };

    use crate::wire::checksum::tail;

    /// Only ever handed out by [`super::summer`], after the processor was asked.
    pub(super) fn sum(bytes: &[u8]) -> u64 {
        // SAFETY: `summer` returns this function only where AVX2 was detected.
        unsafe { sum_avx2(bytes) }
    }

    /// Eight lanes of 64 bits in two accumulators for each half of the words: the adds of
    /// one block do not wait for those of another.
    #[target_feature(enable = "avx2")]
    fn sum_avx2(bytes: &[u8]) -> u64 {
        let (blocks, rest) = bytes.as_chunks::<64>();
        let low_half = _mm256_set1_epi64x(0xffff_ffff);
        let mut low = [_mm256_setzero_si256(); 2];
        let mut high = [_mm256_setzero_si256(); 2];
        for block in blocks {
            let (halves, _) = block.as_chunks::<32>();
            for (lane, half) in halves.iter().enumerate() {
                let words = load(half);
                low[lane] = _mm256_add_epi64(low[lane], _mm256_and_si256(words, low_half));
                high[lane] = _mm256_add_epi64(high[lane], _mm256_srli_epi64::<32>(words));
            }
        }
        let low = _mm256_add_epi64(low[0], low[1]);
        let high = _mm256_add_epi64(high[0], high[1]);
        let lanes = store(_mm256_add_epi64(low, high));
        lanes.iter().sum::<u64>() + tail(rest)
    }

    #[target_feature(enable = "avx2")]
    fn load(bytes: &[u8; 32]) -> __m256i {
        // SAFETY: 32 bytes are there to be read, and this load takes any alignment.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    fn store(lanes: __m256i) -> [u64; 4] {
        let mut out = [0u64; 4];
        // SAFETY: 32 bytes are there to be written, and this store takes any alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), lanes) };
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_processors_sum_is_the_portable_one(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            offset in 0usize..8,
        ) {
            let bytes = &bytes[offset.min(bytes.len())..];
            prop_assert_eq!(summer().sum(bytes).folded(), Summer::PORTABLE.sum(bytes).folded());
        }
    }

    #[test]
    fn the_longest_packet_of_ones_overflows_nothing() {
        let bytes = vec![0xff; 65_535];
        assert_eq!(
            summer().sum(&bytes).folded(),
            Summer::PORTABLE.sum(&bytes).folded()
        );
    }
}
