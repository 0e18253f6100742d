//! The life of our lease, as in flannel's subnet manager: acquired once, kept alive, re-acquired
//! in place when it is lost; and the set of the other hosts' leases.
//!
//! Losing the store never shrinks the set of peers: a peer is removed only by a delete, or by
//! its absence from a complete list. A stop neither revokes nor deletes anything, so the subnet
//! stays ours for the rest of the TTL, as with flannel.

pub mod acquire;
mod counters;
mod offline;
mod ownership;
pub mod peers;
mod refusals;
mod renewal;
mod request;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use self::acquire::{AcquireError, Acquired, Renumbering, acquire};
pub use self::counters::{LeaseCounters, LeaseCounts};
use self::peers::MissingPeers;
pub use self::peers::{PeerChange, PeerSet, Refused};
pub use self::renewal::OwnState;
use self::renewal::Renewal;
pub use self::request::AcquireRequest;
use super::lease::LeaseAttrs;
use super::store::{Listing, Store, WatchEvent};

/// Between two tries to list the leases, or to watch them again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Events processed in a second. Further ones wait, and the store's flow control applies.
const EVENTS_PER_SECOND: u32 = 1000;
/// Sets of changes that may wait for the consumer.
const CAPACITY: usize = 64;

/// A running manager.
#[derive(Debug)]
pub struct Running {
    /// What changed, in order. The first set comes from the list of the acquisition and
    /// is sent even if it is empty: from then on the set of peers is complete.
    pub changes: mpsc::Receiver<Vec<PeerChange>>,
    /// The set of peers, for queries.
    pub view: View,
    /// State of our own lease.
    pub own: watch::Receiver<OwnState>,
    /// When the store last sent anything.
    pub last_contact: watch::Receiver<Instant>,
    /// Counters of our lease and of the list of leases.
    pub counters: Arc<LeaseCounters>,
    /// Publishes something else in our lease.
    pub republish: mpsc::Sender<LeaseAttrs>,
    /// Ends after the token was cancelled, or when `changes` is dropped.
    pub task: JoinHandle<()>,
}

/// Shared access to the set of peers.
#[derive(Debug, Clone)]
pub struct View(Arc<Mutex<PeerSet>>);

impl View {
    /// Queries the set, which is locked meanwhile: be short.
    pub fn with<T>(&self, query: impl FnOnce(&PeerSet) -> T) -> T {
        query(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, PeerSet> {
        // Whatever a panic leaves half done, the next complete list repairs.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settings of the manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// flannel's `--subnet-lease-renew-margin`.
    pub renew_margin: Duration,
    /// How long removals are held back if a list is missing most peers; zero: not at all.
    pub mass_delete_hold: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            renew_margin: Duration::from_secs(3600),
            mass_delete_hold: Duration::from_secs(30),
        }
    }
}

impl From<Duration> for Settings {
    /// The margin; everything else by default.
    fn from(renew_margin: Duration) -> Self {
        Self {
            renew_margin,
            ..Self::default()
        }
    }
}

/// Keeps our lease and watches the others' until `stop` is cancelled. Must be called inside a
/// tokio runtime.
///
/// `acquired` is what [`acquire()`] returned; `peers` is a new set.
pub fn spawn(
    store: Arc<dyn Store>,
    acquired: Acquired,
    peers: PeerSet,
    settings: impl Into<Settings>,
    stop: CancellationToken,
) -> Running {
    let settings = settings.into();
    let view = View(Arc::new(Mutex::new(peers)));
    let (changes, receiver) = mpsc::channel(CAPACITY);
    let renewal = Renewal::new(Arc::clone(&store), &acquired, settings.renew_margin);
    let own = renewal.state();
    let counters = Arc::clone(renewal.counters());
    let (contact, last_contact) = watch::channel(Instant::now());
    let (republish, publications) = mpsc::channel(1);
    let manager = Manager {
        store,
        renewal,
        peers: view.clone(),
        changes,
        hold: settings.mass_delete_hold,
        hold_ends: None,
        relist_at: None,
        watch_again_at: None,
        contact,
        pace: (Instant::now(), 0),
    };
    let task = tokio::spawn(async move {
        let closed = manager.changes.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = closed.closed() => {}
            _ = manager.run(acquired, publications) => {}
        }
    });
    Running {
        changes: receiver,
        view,
        own,
        last_contact,
        counters,
        republish,
        task,
    }
}

struct Manager {
    store: Arc<dyn Store>,
    renewal: Renewal,
    peers: View,
    changes: mpsc::Sender<Vec<PeerChange>>,
    hold: Duration,
    /// When the store is listed again because a list was missing most peers.
    hold_ends: Option<Instant>,
    /// When the store is listed again because refused records may be acceptable now.
    relist_at: Option<Instant>,
    /// When the store is watched again because its watch ended.
    watch_again_at: Option<Instant>,
    contact: watch::Sender<Instant>,
    /// Start of the current second of events, and their number.
    pace: (Instant, u32),
}

/// Waits until then; forever for `None`.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// The consumer of the changes is gone.
struct ConsumerGone;

impl Manager {
    async fn run(
        mut self,
        acquired: Acquired,
        mut publications: mpsc::Receiver<LeaseAttrs>,
    ) -> Result<(), ConsumerGone> {
        let mut events = match acquired.is_cached() {
            true => offline::list_and_watch(Arc::clone(&self.store)),
            false => self.store.watch(acquired.listing.revision),
        };
        let first = self.peers.lock().resync(acquired.listing);
        self.changes.send(first).await.map_err(|_| ConsumerGone)?;
        self.log_refused();
        loop {
            // A pause before a retry is a branch of its own: it must not delay a renewal.
            tokio::select! {
                event = events.recv(), if self.watch_again_at.is_none() => match event {
                    Some(event) => self.take(event).await?,
                    // Against the store's contract; the peers known so far stay.
                    None => self.watch_again_at = Some(Instant::now() + RETRY_INTERVAL),
                },
                () = at(self.watch_again_at) => {
                    self.watch_again_at = None;
                    events = self.store.watch(0);
                }
                () = at(self.hold_ends) => {
                    if let Some(revision) = self.relist(true).await? {
                        // The old watch may still send what is older than the list.
                        events = self.store.watch(revision);
                    }
                }
                () = at(self.relist_at) => {
                    if let Some(revision) = self.relist(false).await? {
                        events = self.store.watch(revision);
                    }
                }
                Some(attrs) = publications.recv() => {
                    let changes = self.peers.lock().set_own_address(attrs.public_ip);
                    self.send(changes).await?;
                    self.renewal.republish(attrs).await;
                    self.relist_at = Some(Instant::now());
                }
                () = sleep_until(self.renewal.due()) => {
                    self.renewal.renew().await;
                    if *self.renewal.state().borrow() == OwnState::Held {
                        self.contact.send_replace(Instant::now());
                    }
                }
            }
        }
    }

    async fn send(&self, changes: Vec<PeerChange>) -> Result<(), ConsumerGone> {
        if changes.is_empty() {
            return Ok(());
        }
        self.changes.send(changes).await.map_err(|_| ConsumerGone)
    }

    async fn take(&mut self, event: WatchEvent) -> Result<(), ConsumerGone> {
        self.contact.send_replace(Instant::now());
        self.keep_pace().await;
        let own = self.renewal.concerns(&event);
        let changes = match event {
            WatchEvent::Put(record) => self.peers.lock().put(record),
            WatchEvent::Delete { name, .. } => self.peers.lock().delete(&name),
            WatchEvent::Resync(listing) => {
                self.renewal.counters().count_resync();
                self.take_list(listing)
            }
        };
        self.finish(changes, own).await
    }

    /// Peers first: they must not wait for the store's answer about our own lease.
    async fn finish(&mut self, changes: Vec<PeerChange>, own: bool) -> Result<(), ConsumerGone> {
        self.log_refused();
        self.send(changes).await?;
        if own {
            self.renewal.check().await;
        }
        Ok(())
    }

    /// Limits the rate at which events are processed, so that a host that rewrites its leases in
    /// a loop does not take this host's processor.
    async fn keep_pace(&mut self) {
        let (since, events) = &mut self.pace;
        let now = Instant::now();
        if now - *since >= Duration::from_secs(1) {
            (*since, *events) = (now, 0);
        }
        *events += 1;
        if *events > EVENTS_PER_SECOND {
            sleep_until(*since + Duration::from_secs(1)).await;
            (*since, *events) = (Instant::now(), 1);
        }
    }

    /// Processes a complete list. If it is missing half of the peers, what it has is applied and
    /// removals are held back: a wiped store fills again when the other hosts notice, and
    /// forwarding must not stop until then. Records that are back by then count as recreated.
    /// Our own lease is no evidence, because it may already be renewed.
    fn take_list(&mut self, listing: Listing) -> Vec<PeerChange> {
        let mut peers = self.peers.lock();
        let MissingPeers {
            missing,
            recreated,
            known,
        } = peers.missing_in(&listing);
        let suspect = missing > 0 && (missing + recreated) * 2 >= known;
        if !suspect || self.hold.is_zero() {
            self.hold_ends = None;
            return peers.resync(listing);
        }
        let due = *self.hold_ends.get_or_insert(Instant::now() + self.hold);
        warn!(
            event = "leases_missing",
            missing,
            recreated,
            known,
            seconds = due.saturating_duration_since(Instant::now()).as_secs(),
            "the store's list is missing half of the leases or more, or they were recreated: all peers are kept, and \
             the store is listed again before any is removed (--mass-delete-hold)"
        );
        peers.add_all(listing)
    }

    /// Lists all leases; at the end of the hold (`settle`), applies removals too. Returns the
    /// list's revision, or `None` if the store cannot be read: then all peers stay.
    async fn relist(&mut self, settle: bool) -> Result<Option<i64>, ConsumerGone> {
        let retry_at = match settle {
            true => &mut self.hold_ends,
            false => &mut self.relist_at,
        };
        let listing = match self.store.list().await {
            Ok(listing) => listing,
            Err(error) => {
                warn!(event = "leases_unread", %error, "cannot list the leases again: all peers are kept");
                *retry_at = Some(Instant::now() + RETRY_INTERVAL);
                return Ok(None);
            }
        };
        *retry_at = None;
        self.watch_again_at = None;
        self.renewal.counters().count_list();
        let revision = listing.revision;
        let own = self.renewal.concerns(&WatchEvent::Resync(listing.clone()));
        let changes = match settle {
            true => self.peers.lock().resync(listing),
            false => self.take_list(listing),
        };
        if settle {
            let gone = |change: &&PeerChange| matches!(change, PeerChange::Removed(_));
            let removed = changes.iter().filter(gone).count();
            warn!(
                event = "leases_read_again",
                removed, "listed the leases again: peers that are still missing are removed"
            );
        }
        self.finish(changes, own).await?;
        Ok(Some(revision))
    }

    fn log_refused(&mut self) {
        let (news, total) = {
            let mut peers = self.peers.lock();
            (peers.take_news(), peers.refused_total())
        };
        for Refused {
            name,
            reason,
            rival,
        } in news
        {
            warn!(
                event = "record_refused",
                name,
                reason = reason.text(),
                rival,
                refused = total,
                "lease record refused"
            );
        }
    }
}
