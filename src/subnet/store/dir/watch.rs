//! Watches a directory: inotify says when to look, a comparison of scans says what changed.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

use super::super::{Listing, Record, WatchEvent};
use super::{Inner, Place};

/// Looks at least this often: inotify is silent about what other hosts do on a network
/// file system, and after a directory was replaced.
pub(super) const RESCAN: Duration = Duration::from_secs(10);
/// Lets a burst of changes end, and a writer that is not atomic finish.
const SETTLE: Duration = Duration::from_millis(50);
/// Events that may wait for the receiver.
const CAPACITY: usize = 256;

struct Watcher {
    store: Arc<Inner>,
    known: BTreeMap<String, Record>,
    /// The directory that they are from.
    place: Option<Place>,
    events: mpsc::Sender<WatchEvent>,
    failing: bool,
}

/// Nobody listens any more.
struct ReceiverGone;

/// Starts the task; it ends when the receiver is dropped.
pub(super) fn spawn(store: Arc<Inner>, revision: i64) -> mpsc::Receiver<WatchEvent> {
    let (events, receiver) = mpsc::channel(CAPACITY);
    let closed = events.clone();
    let watcher = Watcher {
        store,
        known: BTreeMap::new(),
        place: None,
        events,
        failing: false,
    };
    tokio::spawn(async move {
        tokio::select! {
            () = closed.closed() => {}
            _ = watcher.run(revision) => {}
        }
    });
    receiver
}

impl Watcher {
    async fn run(mut self, revision: i64) -> Result<(), ReceiverGone> {
        // The first scan comes after the watch is set, so that nothing falls between.
        let mut notices = Notices::new(&self.store);
        self.begin(revision).await?;
        loop {
            notices.wait(&self.store).await;
            if let Some((listing, place)) = self.scan().await {
                self.compare(listing, place).await?;
            }
        }
    }

    /// Finds out whether something changed since the caller's list.
    async fn begin(&mut self, revision: i64) -> Result<(), ReceiverGone> {
        let (listing, place) = loop {
            match self.scan().await {
                Some(found) => break found,
                None => sleep(Duration::from_secs(1)).await,
            }
        };
        self.known = by_name(&listing);
        self.place = place;
        if listing.revision == revision {
            return Ok(());
        }
        self.send(WatchEvent::Resync(listing)).await
    }

    /// A complete list, or `None` (said once) when it can't be had: what is known stays.
    async fn scan(&mut self) -> Option<(Listing, Option<Place>)> {
        let store = Arc::clone(&self.store);
        let result = tokio::task::spawn_blocking(move || store.list())
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        let path = self.store.subnets();
        match result {
            Ok(found) => {
                if self.failing {
                    info!(event = "directory_readable", path = %path.display(), "lease directory is readable again");
                }
                self.failing = false;
                Some(found)
            }
            Err(error) => {
                if !self.failing {
                    warn!(event = "directory_unreadable", path = %path.display(), %error, "lease directory is unreadable, keeping what is known");
                }
                self.failing = true;
                None
            }
        }
    }

    /// Tells what changed. One record less is one that somebody removed; several at once, or
    /// another directory, may be an accident: whoever gets the list may look twice.
    async fn compare(
        &mut self,
        listing: Listing,
        place: Option<Place>,
    ) -> Result<(), ReceiverGone> {
        let new = by_name(&listing);
        let old = std::mem::replace(&mut self.known, new);
        let before = std::mem::replace(&mut self.place, place);
        let gone: Vec<_> = old
            .values()
            .filter(|record| !self.known.contains_key(&record.name))
            .collect();
        let replaced = before.is_some() && before != place;
        if gone.len() > 1 || (replaced && !gone.is_empty()) {
            return self.send(WatchEvent::Resync(listing)).await;
        }
        for record in gone {
            let event = WatchEvent::Delete {
                name: record.name.clone(),
                revision: record.revision,
            };
            self.send(event).await?;
        }
        for record in listing.records {
            if old.get(&record.name) != Some(&record) {
                self.send(WatchEvent::Put(record)).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, event: WatchEvent) -> Result<(), ReceiverGone> {
        self.events.send(event).await.map_err(|_| ReceiverGone)
    }
}

fn by_name(listing: &Listing) -> BTreeMap<String, Record> {
    listing
        .records
        .iter()
        .map(|record| (record.name.clone(), record.clone()))
        .collect()
}

/// When to look.
struct Notices {
    stream: Option<EventStream<[u8; 4096]>>,
}

impl Notices {
    fn new(store: &Inner) -> Self {
        match Self::open(store) {
            Ok(stream) => Self {
                stream: Some(stream),
            },
            Err(error) => {
                warn!(event = "no_inotify", path = %store.path.display(), %error, "no inotify watch, looking every 10 s");
                Self { stream: None }
            }
        }
    }

    fn open(store: &Inner) -> io::Result<EventStream<[u8; 4096]>> {
        let inotify = Inotify::init()?;
        let stream = inotify.into_event_stream([0; 4096])?;
        add_watches(&stream, store);
        Ok(stream)
    }

    /// Waits for a notice or the next regular look.
    async fn wait(&mut self, store: &Inner) {
        let deadline = Instant::now() + RESCAN;
        let Some(stream) = &mut self.stream else {
            return sleep(RESCAN).await;
        };
        match timeout_at(deadline, stream.next()).await {
            Ok(Some(Ok(_))) => {
                // Drain what else comes, without letting a steady writer hold us up.
                let end = Instant::now() + SETTLE;
                while let Ok(Some(Ok(_))) = timeout_at(end, stream.next()).await {}
            }
            Ok(_) => {
                self.stream = None;
                return sleep(SETTLE).await;
            }
            Err(_) => {}
        }
        // A directory that was replaced has a new inode: watching the same one again
        // changes nothing.
        add_watches(stream, store);
    }
}

/// Watches the records and the directories above them that exist, to see them come.
fn add_watches(stream: &EventStream<[u8; 4096]>, store: &Inner) {
    let subnets = store.subnets();
    let changes = WatchMask::CREATE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::CLOSE_WRITE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF;
    // The `.tmp` and `.lock` beside `subnets` are written all the time: only moves and
    // births are of interest there.
    let births = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::ONLYDIR;
    let _ = stream.watches().add(&subnets, changes);
    let _ = stream.watches().add(&store.path, births);
    let parent = store
        .path
        .parent()
        .filter(|parent| *parent != Path::new(""));
    if let Some(parent) = parent.filter(|_| !store.path.exists()) {
        let _ = stream.watches().add(parent, births);
    }
}
