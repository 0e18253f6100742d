//! A watch by long polls that survives lost connections, restarts, cleared history and wiped
//! stores.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::super::feed::{self, Feed, ReceiverGone};
use super::super::{StoreError, WatchEvent};
use super::Inner;
use super::response::{self, Key, Response};

/// Length of one poll, so that a connection that died unnoticed costs no more.
const POLL_TIMEOUT: Duration = Duration::from_secs(25);

/// Why polling stopped.
enum End {
    ReceiverGone,
    /// The events after the cursor are lost.
    HistoryGone(String),
    /// Try again from the cursor.
    Failed(String),
}

impl From<ReceiverGone> for End {
    fn from(_: ReceiverGone) -> Self {
        Self::ReceiverGone
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// A record at one moment of one store's history.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Anchor {
    name: String,
    created: i64,
    revision: i64,
    /// As good as a random number.
    expiration: Option<String>,
}

impl Anchor {
    fn of(key: &Key) -> Self {
        Self {
            name: key.record.name.clone(),
            created: key.record.created,
            revision: key.record.revision,
            expiration: key.expiration.clone(),
        }
    }
}

struct Watcher {
    store: Arc<Inner>,
    feed: Feed,
    /// Our own record, which identifies the store after a break.
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
            match self.poll().await {
                Ok(()) => self.feed.recovered(),
                Err(End::ReceiverGone) => return Err(ReceiverGone),
                Err(End::Failed(reason)) => self.feed.pause(&reason).await,
                Err(End::HistoryGone(reason)) => {
                    let store = &self.store;
                    self.feed.relist(&reason, || store.list()).await?;
                    self.anchor = None;
                }
            }
        }
    }

    async fn poll(&mut self) -> Result<(), End> {
        let next = self.feed.cursor.saturating_add(1);
        let members = &self.store.members;
        let open = members.open(&self.store.watch_call(next)).await;
        let open = open.map_err(End::Failed)?;
        let index = open.index;
        self.check_not_wiped(index).await?;
        self.check_anchor().await?;
        let raw = self.store.members.read(open, POLL_TIMEOUT).await;
        let raw = match raw.map_err(End::Failed)? {
            Some(raw) if !raw.body.is_empty() => raw,
            // Nothing below our directory up to the index in the head.
            _ => {
                self.feed.advance(index);
                return Ok(());
            }
        };
        match response::parse(raw.status, &raw.body, &self.store.base) {
            Ok(Response::Key(key)) => self.forward(key).await,
            Ok(Response::Cleared) => {
                let text = "the events since then are cleared";
                Err(End::HistoryGone(text.into()))
            }
            Ok(other) => Err(End::Failed(format!(
                "unexpected response to a watch: {other:?}"
            ))),
            Err(error) => Err(End::Failed(error.to_string())),
        }
    }

    async fn forward(&mut self, key: Key) -> Result<(), End> {
        let revision = key.record.revision;
        self.follow_anchor(&key);
        let Some(event) = response::event(key) else {
            return Err(End::HistoryGone("a directory was removed".into()));
        };
        match self.store.as_seen(event).await {
            Some(event) => self.feed.send(event, revision).await?,
            None => self.feed.advance(revision),
        }
        Ok(())
    }

    /// A store that was restored from a backup, or wiped, is behind the cursor. So is a member
    /// that only lags, so a list by quorum decides. Errors have no index.
    async fn check_not_wiped(&self, index: i64) -> Result<(), End> {
        let cursor = self.feed.cursor;
        if !(1..cursor).contains(&index) {
            return Ok(());
        }
        let now = self.store.list().await?.revision;
        if now >= cursor {
            return Ok(());
        }
        Err(End::HistoryGone(format!(
            "the store is at index {now}, before our {cursor}: it was replaced"
        )))
    }

    /// Whether this is still the store that we watched until the break, if there was one. Its
    /// index cannot tell: that of a new store may soon be beyond our cursor.
    async fn check_anchor(&mut self) -> Result<(), End> {
        let name = match &self.anchor {
            Some(known) if self.feed.is_interrupted() => known.name.clone(),
            Some(_) => return Ok(()),
            None => match self.store.session.own_name() {
                Some(own) => own,
                None => return Ok(()),
            },
        };
        let operation = "checking whether etcd is the one that was watched";
        let found = self.store.read(operation, &name).await?;
        let found = found.as_ref().map(Anchor::of);
        if self.anchor.is_none() {
            // A younger one comes as an event.
            self.anchor = found.filter(|found| found.revision <= self.feed.cursor);
            return Ok(());
        }
        if found == self.anchor {
            return Ok(());
        }
        Err(End::HistoryGone(
            "our record differs from what it was: it changed meanwhile, or the store was replaced"
                .into(),
        ))
    }

    fn follow_anchor(&mut self, key: &Key) {
        let name = &key.record.name;
        let known = self
            .anchor
            .as_ref()
            .is_some_and(|known| known.name == *name);
        if !key.elsewhere && (known || self.store.session.kept().contains_key(name)) {
            self.anchor = (!key.is_deletion()).then(|| Anchor::of(key));
        }
    }
}
