//! A watch that survives lost connections, restarts, compactions and wiped stores.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{KeyValue, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::super::etcd::MAX_ANSWER;
use super::super::feed::{self, Feed, ReceiverGone};
use super::super::{StoreError, WatchEvent};
use super::Inner;
use super::anchor::Anchor;
use super::connection::Borrowed;
use super::failure::{Failure, Fault};

/// A stream that lived this long has shown that the member serves us: the next wait is short
/// again. One that ends sooner has not, however often it opens.
const STEADY_AFTER: Duration = Duration::from_secs(5);
/// The server must confirm a watch within this time.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a stream of events ended.
enum End {
    ReceiverGone,
    /// The events after the cursor are lost.
    HistoryGone(String),
    /// Try again from the cursor.
    Failed(Failure),
}

impl From<ReceiverGone> for End {
    fn from(_: ReceiverGone) -> Self {
        Self::ReceiverGone
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        match failure.fault {
            // It would be too large again; a list is read in pages.
            Fault::TooLarge => Self::HistoryGone(failure.text),
            _ => Self::Failed(failure),
        }
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Failed(Failure::of_member(error.to_string()))
    }
}

struct Watcher {
    store: Arc<Inner>,
    feed: Feed,
    anchor: Option<Anchor>,
}

pub(super) fn spawn(store: Arc<Inner>, revision: i64) -> mpsc::Receiver<WatchEvent> {
    feed::spawn(|events| {
        let watcher = Watcher {
            store,
            feed: Feed::new(events, revision),
            anchor: None,
        };
        watcher.run()
    })
}

impl Watcher {
    async fn run(mut self) -> Result<(), ReceiverGone> {
        loop {
            match self.follow().await {
                End::ReceiverGone => return Err(ReceiverGone),
                End::HistoryGone(reason) => {
                    let store = &self.store;
                    self.feed.relist(&reason, || store.list()).await?;
                    self.anchor = None;
                }
                End::Failed(failure) => self.feed.pause(&failure.text).await,
            }
        }
    }

    /// Follows one stream to its end.
    async fn follow(&mut self) -> End {
        let borrowed = match self.store.connection.client().await {
            Ok(borrowed) => borrowed,
            Err(failure) => {
                self.store.connection.skip().await;
                return End::Failed(failure);
            }
        };
        let Err(end) = self.stream(&borrowed).await;
        if let End::Failed(failure) = &end {
            let connection = &self.store.connection;
            connection.give_back(&borrowed, failure.fault).await;
        }
        end
    }

    async fn stream(&mut self, borrowed: &Borrowed) -> Result<Infallible, End> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(self.feed.cursor.saturating_add(1))
            .with_progress_notify();
        let mut client = borrowed
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
        let url = self.store.connection.url(borrowed.endpoint).to_owned();
        let (mut stream, first) = match timeout(CONFIRMATION_TIMEOUT, opened).await {
            Ok(Ok((stream, Some(first)))) => (stream, first),
            Ok(Ok((_, None))) => return Err(stream_ended(&url)),
            Ok(Err(error)) => return Err(Failure::from(error).at(&url).into()),
            Err(_) => return Err(Failure::timeout().at(&url).into()),
        };
        self.take(&first, &url).await?;
        self.check_not_wiped(&first).await?;
        self.check_anchor(&url).await?;
        self.receive(&mut stream, &url).await
    }

    async fn receive(&mut self, stream: &mut WatchStream, url: &str) -> Result<Infallible, End> {
        let steady = Instant::now() + STEADY_AFTER;
        loop {
            let response = tokio::select! {
                response = stream.message() => response,
                () = sleep_until(steady), if self.feed.is_interrupted() => {
                    self.feed.recovered();
                    continue;
                }
            };
            match response {
                Ok(Some(response)) => self.take(&response, url).await?,
                Ok(None) => return Err(stream_ended(url)),
                Err(error) => return Err(Failure::from(error).at(url).into()),
            }
        }
    }

    /// Forwards the events of one response and moves the cursor.
    async fn take(&mut self, response: &WatchResponse, url: &str) -> Result<(), End> {
        if response.compact_revision() != 0 {
            let oldest = response.compact_revision();
            let text = format!("{url}: compacted up to revision {oldest}");
            return Err(End::HistoryGone(text));
        }
        if response.canceled() {
            let text = format!("{url}: watch refused: {}", response.cancel_reason());
            return Err(Failure::of_message(text).into());
        }
        for event in response.events() {
            let Some(kv) = event.kv() else {
                debug!(url, "etcd watch event without a key skipped");
                continue;
            };
            self.follow_anchor(kv);
            let record = self.store.record(kv);
            let revision = record.revision;
            // Only a deleted key has version 0. The event's type is not read: the library
            // panics at types that it does not know.
            let event = if kv.version() == 0 {
                WatchEvent::Delete {
                    name: record.name,
                    revision,
                }
            } else {
                WatchEvent::Put(record)
            };
            self.feed.send(event, revision).await?;
        }
        if response.events().is_empty() && !response.created() {
            // A progress report: everything up to here was delivered.
            let header = response.header();
            self.feed
                .advance(header.map_or(0, etcd_client::ResponseHeader::revision));
        }
        Ok(())
    }

    /// A store that was restored from a backup, or wiped, is behind the cursor; a watch there
    /// would stay silent until the store catches up. A member that only lags behind the others
    /// looks the same, so a list (which asks the leader) decides.
    async fn check_not_wiped(&self, first: &WatchResponse) -> Result<(), End> {
        let header = first.header();
        let cursor = self.feed.cursor;
        if header.map_or(0, etcd_client::ResponseHeader::revision) >= cursor {
            return Ok(());
        }
        let now = self.store.list().await?.revision;
        if now >= cursor {
            return Ok(());
        }
        Err(End::HistoryGone(format!(
            "the store is at revision {now}, before our {cursor}: it was replaced"
        )))
    }

    /// Whether this is the store that we watched until the break. Its revision cannot tell:
    /// keeping a lease alive does not raise it, so our cursor may be small and a new store soon
    /// beyond it. One record can, as it was at the cursor: its etcd lease has a random number.
    /// That record may also have changed legitimately since; then one list too many is read.
    async fn check_anchor(&mut self, url: &str) -> Result<(), End> {
        let Some(known) = self.anchor.take() else {
            let found = self.store.anchor().await?;
            // A younger one comes as an event.
            self.anchor = found.filter(|found| found.revision <= self.feed.cursor);
            return Ok(());
        };
        let found = self.store.read_anchor(&known.key).await;
        let key = String::from_utf8_lossy(&known.key).into_owned();
        if found.is_err() || matches!(&found, Ok(Some(found)) if *found == known) {
            self.anchor = Some(known);
            return found.map(drop).map_err(End::from);
        }
        Err(End::HistoryGone(format!(
            "{url}: {key} differs from what it was: it changed meanwhile, or the store was replaced"
        )))
    }

    /// Our own record is the best anchor: nobody else changes it.
    fn follow_anchor(&mut self, kv: &KeyValue) {
        let known = self.anchor.as_ref();
        if self.store.is_own(kv.key()) || known.is_some_and(|known| known.key == kv.key()) {
            self.anchor = (kv.version() != 0).then(|| Anchor::of(kv));
        }
    }
}

fn stream_ended(url: &str) -> End {
    End::Failed(Failure::of_member(format!("{url}: the stream ended")))
}
