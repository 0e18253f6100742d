//! Repairs of what others have changed on this host.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::daemon::backoff::Backoff;

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

/// A device that is gone, and the attempts to rebuild it.
#[derive(Debug)]
pub(crate) struct DeviceRepair {
    due: Instant,
    backoff: Backoff,
    /// Why it is gone, or why the last attempt failed.
    error: String,
}

impl DeviceRepair {
    pub(super) fn new(error: String) -> Self {
        Self {
            due: Instant::now(),
            backoff: Backoff::default(),
            error,
        }
    }

    pub(super) const fn due(&self) -> Instant {
        self.due
    }

    pub(super) fn error(&self) -> &str {
        &self.error
    }

    /// An attempt has failed. Returns whether to log that.
    pub(super) fn failed(&mut self, error: String) -> bool {
        let (should_log, pause) = self.backoff.next();
        self.due = Instant::now() + pause;
        self.error = error;
        should_log
    }
}
