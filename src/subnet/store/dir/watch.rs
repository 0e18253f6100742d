//! Watches a directory: inotify triggers scans, and a comparison of scans shows what changed.

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

use super::super::feed::{self, ReceiverGone};
use super::super::{Listing, Record, WatchEvent};
use super::{DirectoryId, Inner};

/// Longest time between scans: inotify does not report what other hosts do on a network file
/// system, nor anything after a directory was replaced.
pub(super) const SCAN_INTERVAL: Duration = Duration::from_secs(10);
/// Lets a burst of changes end, and a non-atomic writer finish.
const SETTLE_TIME: Duration = Duration::from_millis(50);

struct Watcher {
    store: Arc<Inner>,
    known: BTreeMap<String, Record>,
    /// The directory that they are from.
    directory: Option<DirectoryId>,
    events: mpsc::Sender<WatchEvent>,
    failing: bool,
}

pub(super) fn spawn(store: Arc<Inner>, revision: i64) -> mpsc::Receiver<WatchEvent> {
    feed::spawn(|events| {
        let watcher = Watcher {
            store,
            known: BTreeMap::new(),
            directory: None,
            events,
            failing: false,
        };
        watcher.run(revision)
    })
}

impl Watcher {
    async fn run(mut self, revision: i64) -> Result<(), ReceiverGone> {
        // The watch is set before the first scan, so that no change is missed in between.
        let mut trigger = ScanTrigger::new(&self.store);
        self.begin(revision).await?;
        loop {
            trigger.wait(&self.store).await;
            if let Some((listing, directory)) = self.scan().await {
                self.compare(listing, directory).await?;
            }
        }
    }

    /// Checks whether anything changed since the caller's list.
    async fn begin(&mut self, revision: i64) -> Result<(), ReceiverGone> {
        let (listing, directory) = loop {
            match self.scan().await {
                Some(found) => break found,
                None => sleep(Duration::from_secs(1)).await,
            }
        };
        self.known = by_name(&listing);
        self.directory = directory;
        if listing.revision == revision {
            return Ok(());
        }
        self.send(WatchEvent::Resync(listing)).await
    }

    /// A complete list, or `None` (logged once) if it cannot be read: what is known stays.
    async fn scan(&mut self) -> Option<(Listing, Option<DirectoryId>)> {
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
                    warn!(event = "directory_unreadable", path = %path.display(), %error, "lease directory is unreadable: known leases are kept");
                }
                self.failing = true;
                None
            }
        }
    }

    /// Sends what changed. One missing record was removed by somebody. Several at once, or another
    /// directory, may be an accident, so the receiver gets the list and may hold back removals.
    async fn compare(
        &mut self,
        listing: Listing,
        directory: Option<DirectoryId>,
    ) -> Result<(), ReceiverGone> {
        let new = by_name(&listing);
        let old = std::mem::replace(&mut self.known, new);
        let before = std::mem::replace(&mut self.directory, directory);
        let gone: Vec<_> = old
            .values()
            .filter(|record| !self.known.contains_key(&record.name))
            .collect();
        let replaced = before.is_some() && before != directory;
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
        feed::send(&self.events, event).await
    }
}

fn by_name(listing: &Listing) -> BTreeMap<String, Record> {
    listing
        .records
        .iter()
        .map(|record| (record.name.clone(), record.clone()))
        .collect()
}

/// When to scan.
struct ScanTrigger {
    stream: Option<EventStream<[u8; 4096]>>,
}

impl ScanTrigger {
    fn new(store: &Inner) -> Self {
        match Self::open(store) {
            Ok(stream) => Self {
                stream: Some(stream),
            },
            Err(error) => {
                warn!(event = "no_inotify", path = %store.path.display(), %error, "no inotify watch: scanning every 10 s");
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

    /// Waits for a change or the next regular scan.
    async fn wait(&mut self, store: &Inner) {
        let deadline = Instant::now() + SCAN_INTERVAL;
        let Some(stream) = &mut self.stream else {
            return sleep(SCAN_INTERVAL).await;
        };
        match timeout_at(deadline, stream.next()).await {
            Ok(Some(Ok(_))) => {
                // Drain further events, but not forever if a writer never pauses.
                let end = Instant::now() + SETTLE_TIME;
                while let Ok(Some(Ok(_))) = timeout_at(end, stream.next()).await {}
            }
            Ok(_) => {
                self.stream = None;
                return sleep(SETTLE_TIME).await;
            }
            Err(_) => {}
        }
        // A replaced directory has a new inode. Watching the same one again has no effect.
        add_watches(stream, store);
    }
}

/// Watches the records, and the directories above them for their creation.
fn add_watches(stream: &EventStream<[u8; 4096]>, store: &Inner) {
    let subnets = store.subnets();
    let changes = WatchMask::CREATE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::CLOSE_WRITE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF;
    // `.tmp` and `.lock` beside `subnets` are written all the time: only creations and moves
    // matter there.
    let creations = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::ONLYDIR;
    let _ = stream.watches().add(&subnets, changes);
    let _ = stream.watches().add(&store.path, creations);
    let parent = store
        .path
        .parent()
        .filter(|parent| *parent != Path::new(""));
    if let Some(parent) = parent.filter(|_| !store.path.exists()) {
        let _ = stream.watches().add(parent, creations);
    }
}
