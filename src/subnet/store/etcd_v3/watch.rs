//! A watch that goes on: over lost connections, restarts, compactions and wiped stores.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{KeyValue, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::super::WatchEvent;
use super::super::etcd::MAX_ANSWER;
use super::Inner;
use super::anchor::Anchor;
use super::connection::{Lent, explain, is_stale_login, is_too_large};

/// First and longest wait between tries, as flannel's.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A stream that lived so long has shown that the member serves us: the next wait is short
/// again. One that ends sooner has not, however often it opens.
const STEADY: Duration = Duration::from_secs(5);
/// A watch must be confirmed by the server within this time.
const CONFIRMATION: Duration = Duration::from_secs(10);
/// Events that may wait for the receiver; then the stream's flow control holds etcd back.
const CAPACITY: usize = 256;

/// Why one stream of events ended.
enum End {
    /// Nobody listens any more.
    ReceiverGone,
    /// Events after the cursor are not to be had: list.
    HistoryGone(String),
    /// Try again from the cursor.
    Failed(String),
}

struct Watcher {
    store: Arc<Inner>,
    /// Last revision seen.
    cursor: i64,
    events: mpsc::Sender<WatchEvent>,
    /// Tries since the last stream that lived.
    failures: u32,
    /// By what the store is known again after a break.
    anchor: Option<Anchor>,
}

/// Starts the task; it ends when the receiver is dropped.
pub(super) fn spawn(store: Arc<Inner>, revision: i64) -> mpsc::Receiver<WatchEvent> {
    let (events, receiver) = mpsc::channel(CAPACITY);
    let watcher = Watcher {
        store,
        cursor: revision,
        events,
        failures: 0,
        anchor: None,
    };
    tokio::spawn(watcher.run());
    receiver
}

/// What is more than one answer may hold would be so again: a list is read in pages.
fn ended(url: &str, error: &etcd_client::Error) -> End {
    let text = format!("{url}: {}", explain(error));
    match is_too_large(&text) {
        true => End::HistoryGone(text),
        false => End::Failed(text),
    }
}

impl Watcher {
    async fn run(mut self) {
        let closed = self.events.clone();
        tokio::select! {
            () = closed.closed() => {}
            () = self.go_on() => {}
        }
    }

    async fn go_on(&mut self) {
        loop {
            match self.follow().await {
                End::ReceiverGone => return,
                End::HistoryGone(reason) => {
                    // The first list comes at once; a store that loses its history again and
                    // again is not asked faster than one that does not answer.
                    if self.failures > 0 {
                        self.pause(&reason).await;
                    }
                    self.failures = self.failures.saturating_add(1);
                    warn!(
                        event = "etcd_watch_history",
                        cursor = self.cursor,
                        reason,
                        "etcd watch lost history: listing all leases"
                    );
                    if !self.resync().await {
                        return;
                    }
                }
                End::Failed(reason) => self.pause(&reason).await,
            }
        }
    }

    /// Waits, longer each time, and logs an outage once.
    async fn pause(&mut self, reason: &str) {
        if self.failures == 0 {
            warn!(
                event = "etcd_watch_lost",
                reason,
                cursor = self.cursor,
                "etcd watch interrupted, trying again"
            );
        } else {
            debug!(
                reason,
                tries = self.failures,
                "etcd watch still interrupted"
            );
        }
        let doubled = BACKOFF.0.saturating_mul(1 << self.failures.min(10));
        // Jitter: a thousand hosts that lost one etcd must not come back as one.
        let wait = doubled
            .min(BACKOFF.1)
            .mul_f64(rand::random_range(0.5..=1.0));
        self.failures = self.failures.saturating_add(1);
        sleep(wait).await;
    }

    fn recovered(&mut self) {
        if self.failures > 0 {
            info!(
                event = "etcd_watch_back",
                cursor = self.cursor,
                tries = self.failures,
                "etcd watch goes on"
            );
        }
        self.failures = 0;
    }

    /// Lists until it works, and hands the list on; `false` when nobody listens.
    async fn resync(&mut self) -> bool {
        loop {
            match self.store.list().await {
                Ok(listing) => {
                    self.cursor = listing.revision;
                    self.anchor = None;
                    return self.events.send(WatchEvent::Resync(listing)).await.is_ok();
                }
                Err(error) => self.pause(&error.to_string()).await,
            }
        }
    }

    /// Follows one stream to its end.
    async fn follow(&mut self) -> End {
        let lent = match self.store.connection.client().await {
            Ok(lent) => lent,
            Err(error) => {
                self.store.connection.skip().await;
                return End::Failed(explain(&error));
            }
        };
        let end = self.stream(&lent).await;
        if let End::Failed(reason) = &end {
            self.store
                .connection
                .give_back(&lent, is_stale_login(reason))
                .await;
        }
        end
    }

    async fn stream(&mut self, lent: &Lent) -> End {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(self.cursor.saturating_add(1))
            .with_progress_notify();
        let mut client = lent
            .client
            .watch_client()
            .max_decoding_message_size(MAX_ANSWER);
        let opened = async {
            let mut stream = client
                .watch(self.store.records.as_str(), Some(options))
                .await?;
            let first = stream.message().await?;
            Ok::<_, etcd_client::Error>((stream, first))
        };
        let url = self.store.connection.url(lent.endpoint).to_owned();
        let (mut stream, first) = match tokio::time::timeout(CONFIRMATION, opened).await {
            Ok(Ok((stream, Some(first)))) => (stream, first),
            Ok(Ok((_, None))) => return End::Failed(format!("{url}: the stream ended")),
            Ok(Err(error)) => return ended(&url, &error),
            Err(_) => return End::Failed(format!("{url}: no answer in time")),
        };
        if let Some(end) = self.take(&first, &url).await {
            return end;
        }
        if let Some(end) = self.check_not_wiped(&first).await {
            return end;
        }
        if let Some(end) = self.check_anchor(&url).await {
            return end;
        }
        self.receive(&mut stream, &url).await
    }

    async fn receive(&mut self, stream: &mut WatchStream, url: &str) -> End {
        let steady = Instant::now() + STEADY;
        loop {
            let answer = tokio::select! {
                answer = stream.message() => answer,
                () = sleep_until(steady), if self.failures > 0 => {
                    self.recovered();
                    continue;
                }
            };
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => return End::Failed(format!("{url}: the stream ended")),
                Err(error) => return ended(url, &error),
            };
            if let Some(end) = self.take(&answer, url).await {
                return end;
            }
        }
    }

    /// Hands the events of one answer on and moves the cursor.
    async fn take(&mut self, answer: &WatchResponse, url: &str) -> Option<End> {
        if answer.compact_revision() != 0 {
            let oldest = answer.compact_revision();
            return Some(End::HistoryGone(format!(
                "{url}: compacted up to revision {oldest}"
            )));
        }
        if answer.canceled() {
            return Some(End::Failed(format!(
                "{url}: watch refused: {}",
                answer.cancel_reason()
            )));
        }
        for event in answer.events() {
            let Some(kv) = event.kv() else {
                debug!(url, "etcd watch event without a key skipped");
                continue;
            };
            self.follow_anchor(kv);
            let record = self.store.record(kv);
            let revision = record.revision;
            // Only a deleted key has version 0. The event's type is not asked: the library
            // panics at types that it does not know.
            let event = if kv.version() == 0 {
                WatchEvent::Delete {
                    name: record.name,
                    revision,
                }
            } else {
                WatchEvent::Put(record)
            };
            if self.events.send(event).await.is_err() {
                return Some(End::ReceiverGone);
            }
            self.cursor = self.cursor.max(revision);
        }
        if answer.events().is_empty() && !answer.created() {
            // A progress report: everything up to here was delivered.
            let reported = answer
                .header()
                .map_or(0, etcd_client::ResponseHeader::revision);
            self.cursor = self.cursor.max(reported);
        }
        None
    }

    /// A store restored from a backup, or begun anew, stands behind the cursor; a watch
    /// there would stay silent until the store catches up. A member that only lags
    /// behind the others looks the same, so a list (which asks the leader) decides.
    async fn check_not_wiped(&mut self, first: &WatchResponse) -> Option<End> {
        let revision = first
            .header()
            .map_or(0, etcd_client::ResponseHeader::revision);
        if revision >= self.cursor {
            return None;
        }
        match self.store.list().await {
            Ok(listing) if listing.revision < self.cursor => Some(End::HistoryGone(format!(
                "the store is at revision {}, before our {}: it was replaced",
                listing.revision, self.cursor
            ))),
            Ok(_) => None,
            Err(error) => Some(End::Failed(error.to_string())),
        }
    }

    /// Whether this is the store that we watched until the break. Its revision cannot tell: a
    /// lease that is kept alive makes none, so our cursor may be small, and a store begun anew
    /// soon beyond it. One record tells, as it was at the cursor: its etcd lease has a random
    /// number. It may also have changed rightly since the break; then a list too many is read.
    async fn check_anchor(&mut self, url: &str) -> Option<End> {
        let Some(known) = self.anchor.take() else {
            match self.store.anchor().await {
                // A younger one comes as an event.
                Ok(found) => self.anchor = found.filter(|found| found.revision <= self.cursor),
                Err(error) => return Some(End::Failed(error.to_string())),
            }
            return None;
        };
        match self.store.read_anchor(&known.key).await {
            Ok(Some(found)) if found == known => {
                self.anchor = Some(known);
                None
            }
            Ok(_) => {
                let key = String::from_utf8_lossy(&known.key).into_owned();
                Some(End::HistoryGone(format!(
                    "{url}: {key} is not what it was: it changed meanwhile, or the store was replaced"
                )))
            }
            Err(error) => {
                self.anchor = Some(known);
                Some(End::Failed(error.to_string()))
            }
        }
    }

    /// Our own record is the best anchor: nobody else changes it.
    fn follow_anchor(&mut self, kv: &KeyValue) {
        let known = self.anchor.as_ref();
        if self.store.is_own(kv.key()) || known.is_some_and(|known| known.key == kv.key()) {
            self.anchor = (kv.version() != 0).then(|| Anchor::of(kv));
        }
    }
}
