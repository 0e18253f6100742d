//! The checksum code of the packet loop.

use crate::sys::simd::{self, PortableSum};
use crate::wire::checksum::{self, Checksummer};

struct Portable;

impl PortableSum for Portable {
    fn sum(bytes: &[u8]) -> u64 {
        checksum::sum_portable(bytes)
    }
}

/// The fastest implementation of the Internet checksum for this CPU. Call it once and keep
/// the handle.
#[must_use]
pub fn checksummer() -> Checksummer {
    Checksummer::new(simd::fastest_sum::<Portable>())
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
