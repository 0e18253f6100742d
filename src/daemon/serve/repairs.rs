//! How often something on the host that others had changed was put back: one process, one set
//! of figures.

use std::sync::atomic::{AtomicU64, Ordering};

/// What was put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mended {
    /// The device: made anew, or set up again.
    Device,
    /// Routes to peers.
    Routes,
    /// Firewall rules.
    Rules,
}

impl Mended {
    const ALL: [Self; 3] = [Self::Device, Self::Routes, Self::Rules];

    const fn label(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Routes => "routes",
            Self::Rules => "rules",
        }
    }

    /// Counts it once.
    pub fn note(self) {
        COUNTS[self as usize].fetch_add(1, Ordering::Relaxed);
    }
}

static COUNTS: [AtomicU64; Mended::ALL.len()] = [const { AtomicU64::new(0) }; Mended::ALL.len()];

/// All of them since the start.
#[must_use]
pub fn counts() -> Vec<(String, u64)> {
    let all = Mended::ALL.into_iter();
    all.map(|kind| {
        let count = COUNTS[kind as usize].load(Ordering::Relaxed);
        (kind.label().to_owned(), count)
    })
    .collect()
}
