//! Counts repairs of what others had changed on this host.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Repaired {
    /// The device: rebuilt, or its settings restored.
    Device,
    /// Routes to peers.
    Routes,
    /// Firewall rules.
    Rules,
}

/// The repairs since the start; clones share the counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Repairs(Arc<[AtomicU64; 3]>);

impl Repairs {
    pub(crate) fn count(&self, what: Repaired) {
        self.0[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn by_name(&self) -> Vec<(String, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        let names = ["device", "routes", "rules"].map(str::to_owned);
        names.into_iter().zip(counts).collect()
    }
}
