//! The life of a lease, as flannel's subnet manager leads it: acquired once, kept alive,
//! re-acquired in place when it is lost; and the set of the other hosts' leases.
//!
//! Losing the store never shrinks the set of peers: they go only by a delete or by their
//! absence from a complete list. On a stop nothing is revoked or deleted, so the subnet
//! stays ours for the rest of the TTL, as with flannel.

pub mod acquire;
pub mod books;
pub mod claim;
pub mod keeper;
mod offline;
pub mod peers;
mod refusals;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub use self::acquire::{AcquireError, AcquireRequest, Acquired, Renumbering, acquire};
pub use self::books::Books;
pub use self::keeper::{Keeper, OwnState};
use self::peers::Absence;
pub use self::peers::{PeerChange, PeerSet, Refused};
use super::lease::LeaseAttrs;
use super::store::{Listing, Store, WatchEvent};

/// Lines about refused records in one [`LOG_WINDOW`]; the rest is only counted.
const LOG_LINES: usize = 10;
/// See [`LOG_LINES`].
const LOG_WINDOW: Duration = Duration::from_secs(60);
/// Between two tries to read the leases again.
const RETRY: Duration = Duration::from_secs(5);
/// Events that are taken in a second; the rest waits, and the store's flow control with it.
const EVENTS_A_SECOND: u32 = 1000;
/// Sets of changes that may wait for the consumer.
const CAPACITY: usize = 64;

/// A running manager.
#[derive(Debug)]
pub struct Running {
    /// What changed, in order. The first set comes from the list of the acquisition and
    /// is sent even if it is empty: from then on the set of peers is complete.
    pub changes: mpsc::Receiver<Vec<PeerChange>>,
    /// The set of peers, for questions.
    pub view: View,
    /// How our own lease stands.
    pub own: watch::Receiver<OwnState>,
    /// When the store last said something.
    pub heard: watch::Receiver<Instant>,
    /// What happened to our lease and to the list of leases so far.
    pub books: Arc<Books>,
    /// What our lease shall say from now on.
    pub republish: mpsc::Sender<LeaseAttrs>,
    /// Ends after the token was cancelled, or when `changes` is dropped.
    pub task: JoinHandle<()>,
}

/// A look at the running set of peers: `status` asks here.
#[derive(Debug, Clone)]
pub struct View(Arc<Mutex<PeerSet>>);

impl View {
    /// Asks the set something. It is locked meanwhile: be short.
    pub fn with<T>(&self, ask: impl FnOnce(&PeerSet) -> T) -> T {
        ask(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, PeerSet> {
        // The set has no state between two changes that a panic could leave half done
        // and that the next complete list would not repair.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the manager may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// flannel's `--subnet-lease-renew-margin`.
    pub margin: Duration,
    /// How long a list is held in which most peers are missing; zero: never.
    pub mass_delete_hold: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            margin: Duration::from_secs(3600),
            mass_delete_hold: Duration::from_secs(30),
        }
    }
}

impl From<Duration> for Settings {
    /// The margin; everything else by default.
    fn from(margin: Duration) -> Self {
        Self {
            margin,
            ..Self::default()
        }
    }
}

/// Keeps our lease and follows the others' until `stop` is cancelled. Must be called
/// inside a tokio runtime.
///
/// `acquired` is what [`acquire()`] returned; `peers` is a fresh set.
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
    let keeper = Keeper::new(Arc::clone(&store), &acquired, settings.margin);
    let own = keeper.state();
    let books = keeper.books();
    let (heard, heard_seen) = watch::channel(Instant::now());
    let (republish, wishes) = mpsc::channel(1);
    let manager = Manager {
        store,
        keeper,
        peers: view.clone(),
        changes,
        hold: settings.mass_delete_hold,
        look_again: None,
        reread: None,
        heard,
        logged: VecDeque::new(),
        pace: (Instant::now(), 0),
    };
    let task = tokio::spawn(async move {
        let closed = manager.changes.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = closed.closed() => {}
            _ = manager.run(acquired, wishes) => {}
        }
    });
    Running {
        changes: receiver,
        view,
        own,
        heard: heard_seen,
        books,
        republish,
        task,
    }
}

struct Manager {
    store: Arc<dyn Store>,
    keeper: Keeper,
    peers: View,
    changes: mpsc::Sender<Vec<PeerChange>>,
    hold: Duration,
    /// When the store is read again because a list lacked most peers.
    look_again: Option<Instant>,
    /// When the store is read again because records that were refused may be good now.
    reread: Option<Instant>,
    /// When the store last said something.
    heard: watch::Sender<Instant>,
    /// When the latest lines about refused records were written.
    logged: VecDeque<Instant>,
    /// Since when events are counted, and how many there were.
    pace: (Instant, u32),
}

/// Waits until then; forever where there is no time.
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
        mut wishes: mpsc::Receiver<LeaseAttrs>,
    ) -> Result<(), ConsumerGone> {
        let mut events = match acquired.is_cached() {
            true => offline::list_and_watch(Arc::clone(&self.store)),
            false => self.store.watch(acquired.listing.revision),
        };
        let first = self.peers.lock().resync(acquired.listing);
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
                () = at(self.look_again) => {
                    if let Some(revision) = self.read_again(true).await? {
                        // The old watch may still bring what is older than the list.
                        events = self.store.watch(revision);
                    }
                }
                () = at(self.reread) => {
                    if let Some(revision) = self.read_again(false).await? {
                        events = self.store.watch(revision);
                    }
                }
                Some(attrs) = wishes.recv() => {
                    let changes = self.peers.lock().set_own_address(attrs.public_ip);
                    if !changes.is_empty() {
                        self.changes.send(changes).await.map_err(|_| ConsumerGone)?;
                    }
                    self.keeper.republish(attrs).await;
                    self.reread = Some(Instant::now());
                }
                () = sleep_until(self.keeper.due()) => {
                    self.keeper.renew().await;
                    if *self.keeper.state().borrow() == OwnState::Held {
                        self.heard.send_replace(Instant::now());
                    }
                }
            }
        }
    }

    async fn take(&mut self, event: WatchEvent) -> Result<(), ConsumerGone> {
        self.heard.send_replace(Instant::now());
        self.keep_pace().await;
        let own = self.keeper.concerns(&event);
        let changes = match event {
            WatchEvent::Put(record) => self.peers.lock().put(record),
            WatchEvent::Delete { name, .. } => self.peers.lock().delete(&name),
            WatchEvent::Resync(listing) => {
                self.keeper.books().resynced();
                self.take_list(listing)
            }
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

    /// A writer that changes leases without end costs itself alone: what it does is taken in
    /// at a pace that leaves this host time for others.
    async fn keep_pace(&mut self) {
        let (since, events) = &mut self.pace;
        let now = Instant::now();
        if now - *since >= Duration::from_secs(1) {
            (*since, *events) = (now, 0);
        }
        *events += 1;
        if *events > EVENTS_A_SECOND {
            sleep_until(*since + Duration::from_secs(1)).await;
            (*since, *events) = (Instant::now(), 1);
        }
    }

    /// Takes in a complete list that came instead of events. One that lacks half of the
    /// peers is believed for what it has, but not yet for what it lacks: a store that was
    /// wiped fills again when the other hosts notice, and forwarding must not stop until
    /// then. Those that are back are records made anew. Our own lease says nothing, its keeper
    /// may have been faster.
    fn take_list(&mut self, listing: Listing) -> Vec<PeerChange> {
        let mut peers = self.peers.lock();
        let Absence {
            missing,
            made_anew,
            known,
        } = peers.absent_in(&listing);
        let suspect = missing > 0 && (missing + made_anew) * 2 >= known;
        if !suspect || self.hold.is_zero() {
            self.look_again = None;
            return peers.resync(listing);
        }
        let due = *self.look_again.get_or_insert(Instant::now() + self.hold);
        warn!(
            event = "leases_missing",
            missing,
            made_anew,
            known,
            seconds = due.saturating_duration_since(Instant::now()).as_secs(),
            "half of the leases or more are missing from the store's list or were made anew: all peers are kept, and the \
             store is read again before they go (--mass-delete-hold)"
        );
        peers.add_all(listing)
    }

    /// Reads all leases; where the hold is over (`settle`), believes what is missing too. The
    /// revision of the list, or `None` where the store could not be read: then the peers stay.
    async fn read_again(&mut self, settle: bool) -> Result<Option<i64>, ConsumerGone> {
        let again = match settle {
            true => &mut self.look_again,
            false => &mut self.reread,
        };
        let listing = match self.store.list().await {
            Ok(listing) => listing,
            Err(error) => {
                warn!(event = "leases_unread", %error, "leases can't be read again: all peers are kept");
                *again = Some(Instant::now() + RETRY);
                return Ok(None);
            }
        };
        *again = None;
        self.keeper.books().read_again();
        let revision = listing.revision;
        let own = self.keeper.concerns(&WatchEvent::Resync(listing.clone()));
        let changes = match settle {
            true => self.peers.lock().resync(listing),
            false => self.take_list(listing),
        };
        if settle {
            let gone = |change: &&PeerChange| matches!(change, PeerChange::Removed(_));
            let removed = changes.iter().filter(gone).count();
            warn!(
                event = "leases_read_again",
                removed, "read the leases again: what is still missing is gone"
            );
        }
        self.log_refused();
        if !changes.is_empty() {
            self.changes.send(changes).await.map_err(|_| ConsumerGone)?;
        }
        if own {
            self.keeper.look().await;
        }
        Ok(Some(revision))
    }

    fn log_refused(&mut self) {
        let (news, total) = {
            let mut peers = self.peers.lock();
            (peers.take_news(), peers.refused_total())
        };
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
        } in news
        {
            if self.logged.len() >= LOG_LINES {
                return;
            }
            self.logged.push_back(now);
            let refused = total;
            warn!(
                event = "record_refused",
                name,
                reason = reason.text(),
                rival,
                refused,
                "lease record refused"
            );
        }
    }
}
