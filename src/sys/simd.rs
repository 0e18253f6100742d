//! The Internet checksum (RFC 1071) with vector instructions.

/// Sums the 16-bit words of some bytes without vector instructions: a one's complement sum in
/// the machine's byte order, a last odd byte padded with zero, not folded yet.
pub(crate) trait PortableSum {
    /// The sum of `bytes`.
    fn sum(bytes: &[u8]) -> u64;
}

/// Picks the fastest sum that the CPU offers: AVX2 on x86-64, else `P`. Call it once and keep
/// the function. The results are equal up to multiples of 65535.
pub(crate) fn fastest_sum<P: PortableSum>() -> fn(&[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return x86::sum::<P>;
    }
    P::sum
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi64, _mm256_and_si256, _mm256_loadu_si256, _mm256_set1_epi64x,
        _mm256_setzero_si256, _mm256_srli_epi64, _mm256_storeu_si256,
    };

    use super::PortableSum;

    /// Shorter inputs are summed faster without vector instructions.
    const MIN_LEN: usize = 256;

    /// To be returned only by [`super::fastest_sum`], after it has found AVX2.
    pub(super) fn sum<P: PortableSum>(bytes: &[u8]) -> u64 {
        if bytes.len() < MIN_LEN {
            return P::sum(bytes);
        }
        // SAFETY: the only caller that hands out this function has just asked the CPU for
        // AVX2, and a CPU does not lose it.
        unsafe { sum_avx2::<P>(bytes) }
    }

    /// Adds 32-bit words into 64-bit lanes, where carries have room: exact up to 2^32
    /// words per lane.
    #[target_feature(enable = "avx2")]
    fn sum_avx2<P: PortableSum>(bytes: &[u8]) -> u64 {
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
        sum + P::sum(rest)
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
