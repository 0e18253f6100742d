//! Keeps the offline cache up to date while the daemon serves.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::OfflineCache;
use crate::subnet::store::Store;
use crate::subnet::validate::PeerRecord;

/// Shortest time between two writes, and what each peer adds to it.
const WRITE_INTERVAL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(1));
/// From a change to the write: changes come in bursts.
const WRITE_DELAY: Duration = Duration::from_millis(500);
/// Without changes, the file is written this often to confirm its age.
const REFRESH_INTERVAL: Duration = Duration::from_secs(600);
/// Between two attempts to read the store's config.
const CONFIG_INTERVAL: Duration = Duration::from_secs(10);

/// Writes the cache in the background, when something has changed.
#[derive(Debug)]
pub(crate) struct CacheWriter {
    directory: PathBuf,
    cache: OfflineCache,
    due: Option<Instant>,
    written: Option<Instant>,
    writing: Option<JoinHandle<()>>,
    /// The daemon started from the cache, and the datastore has not answered since.
    offline: bool,
}

impl CacheWriter {
    /// `offline`: `cache` was read from the file, not from the datastore.
    pub(crate) fn new(directory: PathBuf, cache: OfflineCache, offline: bool) -> Self {
        Self {
            directory,
            cache,
            due: (!offline).then(Instant::now),
            written: None,
            writing: None,
            offline,
        }
    }

    /// Age of the cache if the daemon still runs from it.
    pub(crate) fn offline_age(&self) -> Option<Duration> {
        self.offline.then(|| self.cache.age())
    }

    /// The datastore answers again, and is authoritative from now on.
    pub(crate) fn back_online(&mut self, store: &Arc<dyn Store>) {
        if std::mem::replace(&mut self.offline, false) {
            tracing::info!(
                event = "store_is_back",
                "the datastore answers: following it"
            );
            self.changed(Instant::now());
            let (store, config) = (Arc::clone(store), self.cache.config.clone());
            tokio::spawn(warn_of_another_config(store, config));
        }
    }

    /// A peer or our address has changed.
    pub(crate) fn changed(&mut self, now: Instant) {
        if self.offline {
            return;
        }
        let peers = u32::try_from(self.cache.peers()).unwrap_or(u32::MAX);
        let interval = WRITE_INTERVAL.0 + WRITE_INTERVAL.1.saturating_mul(peers);
        let earliest = self.written.map_or(now, |written| written + interval);
        let due = earliest.max(now + WRITE_DELAY);
        self.due = Some(self.due.map_or(due, |known| known.min(due)));
    }

    /// When to call [`CacheWriter::write`] next.
    pub(crate) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Writes in the background what the datastore said `ago`.
    pub(crate) fn write(&mut self, public_ip: Ipv4Addr, ago: Duration, peers: Vec<PeerRecord>) {
        let now = Instant::now();
        if self
            .writing
            .as_ref()
            .is_some_and(|task| !task.is_finished())
        {
            self.due = Some(now + WRITE_INTERVAL.0);
            return;
        }
        self.cache.update(public_ip, ago, peers);
        self.written = Some(now);
        self.due = Some(now + REFRESH_INTERVAL);
        let (directory, cache) = (self.directory.clone(), self.cache.clone());
        self.writing = Some(tokio::task::spawn_blocking(move || {
            save(&directory, &cache);
        }));
    }

    /// Writes once more at the end, unless the datastore has not answered since the start.
    pub(crate) async fn finish(
        mut self,
        public_ip: Ipv4Addr,
        ago: Duration,
        peers: Vec<PeerRecord>,
    ) {
        if let Some(task) = self.writing.take() {
            let _ = task.await;
        }
        if !self.offline {
            self.cache.update(public_ip, ago, peers);
            save(&self.directory, &self.cache);
        }
    }
}

fn save(directory: &Path, cache: &OfflineCache) {
    if let Err(error) = cache.save(directory) {
        let path = super::path(directory);
        tracing::warn!(
            event = "offline_cache", %error, path = %path.display(),
            "cannot write the offline cache: a start without the datastore will not know the peers"
        );
    }
}

async fn warn_of_another_config(store: Arc<dyn Store>, used: String) {
    loop {
        match store.config().await {
            Ok(Some(config)) if config == used.as_bytes() => return,
            Ok(Some(_)) => {
                tracing::warn!(
                    event = "config_changed",
                    "the datastore's network config differs from the cached one that is in use: \
                     restart this service to apply it"
                );
                return;
            }
            Ok(None) => {
                tracing::warn!(
                    event = "config_gone",
                    "the datastore no longer has a network config"
                );
                return;
            }
            Err(_) => tokio::time::sleep(CONFIG_INTERVAL).await,
        }
    }
}
