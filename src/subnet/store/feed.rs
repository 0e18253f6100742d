//! What the watches of all stores share: the task, its end, and retries.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::{Listing, StoreError, WatchEvent};

/// Events that may wait for the receiver; beyond that the store's own flow control applies.
const CAPACITY: usize = 256;
/// First and longest wait between retries, as flannel's.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Nobody listens any more.
pub(in crate::subnet) struct ReceiverGone;

/// Starts a watch; it ends when the receiver is dropped.
pub(in crate::subnet) fn spawn<W, F>(watch: W) -> mpsc::Receiver<WatchEvent>
where
    W: FnOnce(mpsc::Sender<WatchEvent>) -> F,
    F: Future<Output = Result<(), ReceiverGone>> + Send + 'static,
{
    let (events, receiver) = mpsc::channel(CAPACITY);
    let closed = events.clone();
    let watch = watch(events);
    tokio::spawn(async move {
        tokio::select! {
            () = closed.closed() => {}
            _ = watch => {}
        }
    });
    receiver
}

pub(in crate::subnet) async fn send(
    events: &mpsc::Sender<WatchEvent>,
    event: WatchEvent,
) -> Result<(), ReceiverGone> {
    events.send(event).await.map_err(|_| ReceiverGone)
}

/// The receiver of an etcd watch, how far it got, and whether the watch is interrupted.
pub(super) struct Feed {
    events: mpsc::Sender<WatchEvent>,
    /// Last revision that the receiver has.
    pub(super) cursor: i64,
    /// Retries since the watch worked last.
    failures: u32,
}

impl Feed {
    pub(super) fn new(events: mpsc::Sender<WatchEvent>, cursor: i64) -> Self {
        Self {
            events,
            cursor,
            failures: 0,
        }
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.failures > 0
    }

    pub(super) async fn send(
        &mut self,
        event: WatchEvent,
        revision: i64,
    ) -> Result<(), ReceiverGone> {
        send(&self.events, event).await?;
        self.advance(revision);
        Ok(())
    }

    /// Nothing happened up to this revision.
    pub(super) fn advance(&mut self, revision: i64) {
        self.cursor = self.cursor.max(revision);
    }

    /// The events after the cursor are lost: sends a complete list instead.
    pub(super) async fn relist<F>(
        &mut self,
        reason: &str,
        list: impl Fn() -> F,
    ) -> Result<(), ReceiverGone>
    where
        F: Future<Output = Result<Listing, StoreError>>,
    {
        // The first list comes at once. A store that loses its history again and again is not
        // asked more often than one that does not answer.
        if self.is_interrupted() {
            self.pause(reason).await;
        }
        self.failures = self.failures.saturating_add(1);
        warn!(
            event = "etcd_watch_history",
            cursor = self.cursor,
            reason,
            "etcd watch lost history: listing all leases"
        );
        let listing = loop {
            match list().await {
                Ok(listing) => break listing,
                Err(error) => self.pause(&error.to_string()).await,
            }
        };
        self.cursor = listing.revision;
        send(&self.events, WatchEvent::Resync(listing)).await
    }

    /// Waits, longer each time, and logs an outage once.
    pub(super) async fn pause(&mut self, reason: &str) {
        if self.is_interrupted() {
            debug!(
                reason,
                tries = self.failures,
                "etcd watch still interrupted"
            );
        } else {
            warn!(
                event = "etcd_watch_lost",
                reason,
                cursor = self.cursor,
                "etcd watch interrupted, retrying"
            );
        }
        let doubled = BACKOFF.0.saturating_mul(1 << self.failures.min(10));
        // Jitter: a thousand hosts that lost one etcd must not come back at once.
        let wait = doubled
            .min(BACKOFF.1)
            .mul_f64(rand::random_range(0.5..=1.0));
        self.failures = self.failures.saturating_add(1);
        sleep(wait).await;
    }

    pub(super) fn recovered(&mut self) {
        if self.is_interrupted() {
            info!(
                event = "etcd_watch_back",
                cursor = self.cursor,
                tries = self.failures,
                "etcd watch continues"
            );
        }
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_store_that_keeps_losing_its_history_is_not_listed_in_a_loop() {
        let (events, mut receiver) = mpsc::channel(CAPACITY);
        let mut feed = Feed::new(events, 9);
        let lists = AtomicU32::new(0);
        let list = || {
            lists.fetch_add(1, Ordering::Relaxed);
            let (records, revision) = (Vec::new(), 3);
            std::future::ready(Ok(Listing { records, revision }))
        };
        let begin = Instant::now();
        assert!(feed.relist("compacted", list).await.is_ok());
        assert_eq!(begin.elapsed(), Duration::ZERO, "the first comes at once");
        assert_eq!(
            feed.cursor, 3,
            "of the list, not of the history that is lost"
        );
        for _ in 0..20 {
            assert!(feed.relist("compacted", list).await.is_ok());
            assert!(matches!(receiver.try_recv(), Ok(WatchEvent::Resync(_))));
        }
        assert!(begin.elapsed() > Duration::from_secs(20));
        feed.recovered();
        let again = Instant::now();
        assert!(feed.relist("compacted", list).await.is_ok());
        assert_eq!(again.elapsed(), Duration::ZERO);
        assert_eq!(lists.load(Ordering::Relaxed), 22);
        drop(receiver);
        assert!(feed.relist("compacted", list).await.is_err());
    }
}
