//! The life of a lease, as flannel's subnet manager leads it: acquired once, kept alive,
//! re-acquired in place when it is lost; and the set of the other hosts' leases.
//!
//! Losing the store never shrinks the set of peers: they go only by a delete or by their
//! absence from a complete list. On a stop nothing is revoked or deleted, so the subnet
//! stays ours for the rest of the TTL, as with flannel.

pub mod acquire;
pub mod keeper;
pub mod peers;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use self::acquire::{AcquireError, AcquireRequest, Acquired, acquire};
pub use self::keeper::{Keeper, OwnState};
pub use self::peers::{PeerChange, PeerSet, Refused};
use super::store::{Store, WatchEvent};

/// Lines about refused records in one [`LOG_WINDOW`]; the rest is only counted.
const LOG_LINES: usize = 10;
/// See [`LOG_LINES`].
const LOG_WINDOW: Duration = Duration::from_secs(60);
/// Sets of changes that may wait for the consumer.
const CAPACITY: usize = 64;

/// A running manager.
#[derive(Debug)]
pub struct Running {
    /// What changed, in order. The first set comes from the list of the acquisition and
    /// is sent even if it is empty: from then on the set of peers is complete.
    pub changes: mpsc::Receiver<Vec<PeerChange>>,
    /// How our own lease stands.
    pub own: watch::Receiver<OwnState>,
    /// Ends after the token was cancelled, or when `changes` is dropped.
    pub task: JoinHandle<()>,
}

/// Keeps our lease and follows the others' until `stop` is cancelled. Must be called
/// inside a tokio runtime.
///
/// `acquired` is what [`acquire()`] returned; `peers` is a fresh set; `margin` is flannel's
/// `--subnet-lease-renew-margin`.
pub fn spawn(
    store: Arc<dyn Store>,
    acquired: Acquired,
    peers: PeerSet,
    margin: Duration,
    stop: CancellationToken,
) -> Running {
    let (changes, receiver) = mpsc::channel(CAPACITY);
    let keeper = Keeper::new(Arc::clone(&store), &acquired, margin);
    let own = keeper.state();
    let manager = Manager {
        store,
        keeper,
        peers,
        changes,
        logged: VecDeque::new(),
    };
    let task = tokio::spawn(async move {
        let closed = manager.changes.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = closed.closed() => {}
            _ = manager.run(acquired) => {}
        }
    });
    Running {
        changes: receiver,
        own,
        task,
    }
}

struct Manager {
    store: Arc<dyn Store>,
    keeper: Keeper,
    peers: PeerSet,
    changes: mpsc::Sender<Vec<PeerChange>>,
    /// When the latest lines about refused records were written.
    logged: VecDeque<Instant>,
}

/// The consumer of the changes is gone.
struct ConsumerGone;

impl Manager {
    async fn run(mut self, acquired: Acquired) -> Result<(), ConsumerGone> {
        let mut events = self.store.watch(acquired.listing.revision);
        let first = self.peers.resync(acquired.listing);
        self.changes.send(first).await.map_err(|_| ConsumerGone)?;
        self.log_refused();
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.take(event).await?,
                    // Against the store's contract; the peers known so far stay.
                    None => {
                        sleep(LOG_WINDOW).await;
                        events = self.store.watch(0);
                    }
                },
                () = sleep_until(self.keeper.due()) => self.keeper.renew().await,
            }
        }
    }

    async fn take(&mut self, event: WatchEvent) -> Result<(), ConsumerGone> {
        let own = self.keeper.concerns(&event);
        let changes = match event {
            WatchEvent::Put(record) => self.peers.put(record),
            WatchEvent::Delete { name, .. } => self.peers.delete(&name),
            WatchEvent::Resync(listing) => self.peers.resync(listing),
        };
        self.log_refused();
        // Peers first: they must not wait for what the store says about our own lease.
        if !changes.is_empty() {
            self.changes.send(changes).await.map_err(|_| ConsumerGone)?;
        }
        if own {
            self.keeper.look().await;
        }
        Ok(())
    }

    fn log_refused(&mut self) {
        let now = Instant::now();
        while self
            .logged
            .front()
            .is_some_and(|line| now - *line >= LOG_WINDOW)
        {
            self.logged.pop_front();
        }
        for Refused {
            name,
            reason,
            rival,
        } in self.peers.take_news()
        {
            if self.logged.len() >= LOG_LINES {
                return;
            }
            self.logged.push_back(now);
            let refused = self.peers.refused_total();
            warn!(
                name,
                reason = reason.text(),
                rival,
                refused,
                "lease record refused"
            );
        }
    }
}
