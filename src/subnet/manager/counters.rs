//! Counters of the lease and of the list of leases: written by the manager, read by metrics and
//! status.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The running counters.
#[derive(Debug, Default)]
pub struct LeaseCounters {
    renewals: AtomicU64,
    renewals_failed: AtomicU64,
    expiry: Mutex<Option<Instant>>,
    resyncs: AtomicU64,
    lists_read_again: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeaseCounts {
    /// Times that the store confirmed our lease.
    pub renewals: u64,
    /// Times that it did not.
    pub renewals_failed: u64,
    /// Time until the lease expires if it is not renewed; `None` for a reservation.
    pub left: Option<Duration>,
    /// Complete lists that a watch sent because it had missed events.
    pub resyncs: u64,
    /// Lists that were read again, most of them because one was missing most peers.
    pub lists_read_again: u64,
}

impl LeaseCounters {
    /// The lease expires after `ttl`; never without one.
    pub(super) fn set_ttl(&self, ttl: Option<Duration>) {
        let expiry = ttl.map(|ttl| Instant::now() + ttl);
        *self.expiry.lock().unwrap_or_else(PoisonError::into_inner) = expiry;
    }

    pub(super) fn count_renewal(&self, succeeded: bool) {
        let count = match succeeded {
            true => &self.renewals,
            false => &self.renewals_failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_resync(&self) {
        self.resyncs.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_list(&self) {
        self.lists_read_again.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads all counters.
    #[must_use]
    pub(crate) fn read(&self) -> LeaseCounts {
        let expiry = *self.expiry.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        LeaseCounts {
            renewals: read(&self.renewals),
            renewals_failed: read(&self.renewals_failed),
            left: expiry.map(|expiry| expiry.saturating_duration_since(Instant::now())),
            resyncs: read(&self.resyncs),
            lists_read_again: read(&self.lists_read_again),
        }
    }
}
