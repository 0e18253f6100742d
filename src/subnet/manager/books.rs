//! What the life of a lease is counted by: written by the manager, read by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The books.
#[derive(Debug, Default)]
pub struct Books {
    renewals: AtomicU64,
    renewals_failed: AtomicU64,
    end: Mutex<Option<Instant>>,
    resyncs: AtomicU64,
    lists_read_again: AtomicU64,
}

/// The books at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Times that the store confirmed our lease.
    pub renewals: u64,
    /// Times that it did not.
    pub renewals_failed: u64,
    /// How long the lease lives if it is not renewed; none where it does not end.
    pub left: Option<Duration>,
    /// Complete lists that came because a watch had missed something.
    pub resyncs: u64,
    /// Lists that were read again because one lacked most peers.
    pub lists_read_again: u64,
}

impl Books {
    /// The lease lives for `ttl` from now on; none where it does not end.
    pub(super) fn lives(&self, ttl: Option<Duration>) {
        let end = ttl.map(|ttl| Instant::now() + ttl);
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }

    pub(super) fn renewed(&self, succeeded: bool) {
        let count = match succeeded {
            true => &self.renewals,
            false => &self.renewals_failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn resynced(&self) {
        self.resyncs.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read_again(&self) {
        self.lists_read_again.fetch_add(1, Ordering::Relaxed);
    }

    /// What is in them.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let end = *self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            renewals: read(&self.renewals),
            renewals_failed: read(&self.renewals_failed),
            left: end.map(|end| end.saturating_duration_since(Instant::now())),
            resyncs: read(&self.resyncs),
            lists_read_again: read(&self.lists_read_again),
        }
    }
}
