//! Pseudo-random payloads, which reveal a lost, repeated or reordered piece.

/// An endless stream of bytes that depends on the seed alone (xorshift64*, Vigna 2016).
#[derive(Debug, Clone)]
pub(super) struct Content {
    state: u64,
}

impl Content {
    pub(super) fn new(seed: u64) -> Self {
        // The state must not be 0; the constant spreads small seeds.
        let state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { state }
    }

    /// Fills `buffer` with the next bytes.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            for (to, from) in chunk.iter_mut().zip(word) {
                *to = from;
            }
        }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// The first `length` bytes of the stream of `seed`.
pub(super) fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    Content::new(seed).fill(&mut buffer);
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_repeatable_and_differ_by_seed() {
        assert_eq!(bytes(7, 1001), bytes(7, 1001));
        assert_ne!(bytes(7, 1001), bytes(8, 1001));
        let mut seen = [false; 256];
        for byte in bytes(7, 10_000) {
            seen[usize::from(byte)] = true;
        }
        assert!(seen.iter().all(|&seen| seen), "every byte value occurs");
    }
}
