//! A watch over long polls that goes on: over lost connections, restarts, cleared history
//! and wiped stores.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::super::WatchEvent;
use super::Inner;
use super::answer::{self, Answer, Key};

/// First and longest wait between tries.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A poll is begun anew after this time: a connection that died unnoticed costs no more.
const POLL: Duration = Duration::from_secs(25);
/// Events that may wait for the receiver.
const CAPACITY: usize = 256;

/// What one poll led to.
enum Outcome {
    /// Go on from the cursor.
    GoOn,
    /// What happened meanwhile can only be listed.
    List(String),
    /// Try again later.
    Failed(String),
    /// Nobody listens any more.
    ReceiverGone,
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
    /// Last index seen.
    cursor: i64,
    events: mpsc::Sender<WatchEvent>,
    /// Tries since the last good answer.
    failures: u32,
    /// Our own record, by which the store is known again after a break.
    anchor: Option<Anchor>,
}

/// Starts the task; it ends when the receiver is dropped.
pub(super) fn spawn(store: Arc<Inner>, revision: i64) -> mpsc::Receiver<WatchEvent> {
    let (events, receiver) = mpsc::channel(CAPACITY);
    let mut watcher = Watcher {
        store,
        cursor: revision,
        events,
        failures: 0,
        anchor: None,
    };
    tokio::spawn(async move {
        let closed = watcher.events.clone();
        tokio::select! {
            () = closed.closed() => {}
            () = watcher.go_on() => {}
        }
    });
    receiver
}

impl Watcher {
    async fn go_on(&mut self) {
        loop {
            match self.poll().await {
                Outcome::GoOn => self.recovered(),
                Outcome::ReceiverGone => return,
                Outcome::Failed(reason) => self.pause(&reason).await,
                Outcome::List(reason) => {
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
            }
        }
    }

    async fn poll(&mut self) -> Outcome {
        let ask = self.store.watch_request(self.cursor.saturating_add(1));
        let pending = match self.store.members.begin(&ask).await {
            Ok(pending) => pending,
            Err(reason) => return Outcome::Failed(reason),
        };
        let index = pending.index;
        // Restored from a backup or begun anew, or only a member that lags: a list by
        // quorum decides. Errors have no index.
        if (1..self.cursor).contains(&index) {
            match self.store.list().await {
                Ok(listing) if listing.revision < self.cursor => {
                    let (now, before) = (listing.revision, self.cursor);
                    return Outcome::List(format!(
                        "the store is at index {now}, before our {before}: it was replaced"
                    ));
                }
                Ok(_) => {}
                Err(error) => return Outcome::Failed(error.to_string()),
            }
        }
        match self.check_anchor().await {
            Ok(true) => {}
            Ok(false) => {
                return Outcome::List(
                    "our record is not what it was: it changed meanwhile, or the store was replaced"
                        .into(),
                );
            }
            Err(reason) => return Outcome::Failed(reason),
        }
        let reply = match self.store.members.finish(pending, POLL).await {
            Ok(Some(reply)) if !reply.body.is_empty() => reply,
            // Nothing below our directory up to the index that the head named.
            Ok(_) => {
                self.cursor = self.cursor.max(index);
                return Outcome::GoOn;
            }
            Err(reason) => return Outcome::Failed(reason),
        };
        match answer::read(reply.status, &reply.body, &self.store.base) {
            Ok(Answer::Key(key)) => {
                let revision = key.record.revision;
                self.follow_anchor(&key);
                let Some(event) = answer::event(key) else {
                    return Outcome::List("a directory was removed".into());
                };
                let Some(event) = self.store.as_seen(event).await else {
                    self.cursor = self.cursor.max(revision);
                    return Outcome::GoOn;
                };
                if self.events.send(event).await.is_err() {
                    return Outcome::ReceiverGone;
                }
                self.cursor = self.cursor.max(revision);
                Outcome::GoOn
            }
            Ok(Answer::Cleared) => Outcome::List("the events since then are cleared".into()),
            Ok(other) => Outcome::Failed(format!("unexpected answer to a watch: {other:?}")),
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }

    /// Whether this is still the store that we watched until the break, if there was one. Its
    /// index cannot tell: one begun anew may soon be beyond our cursor.
    async fn check_anchor(&mut self) -> Result<bool, String> {
        let name = match &self.anchor {
            Some(known) if self.failures > 0 => known.name.clone(),
            Some(_) => return Ok(true),
            None => match self.store.session.own_name() {
                Some(own) => own,
                None => return Ok(true),
            },
        };
        let operation = "looking whether etcd is the one that was watched";
        let found = self.store.read(operation, &name).await;
        let found = found.map_err(|error| error.to_string())?;
        let found = found.as_ref().map(Anchor::of);
        if self.anchor.is_some() {
            return Ok(found == self.anchor);
        }
        // A younger one comes as an event.
        self.anchor = found.filter(|found| found.revision <= self.cursor);
        Ok(true)
    }

    fn follow_anchor(&mut self, key: &Key) {
        let name = &key.record.name;
        let known = self
            .anchor
            .as_ref()
            .is_some_and(|known| known.name == *name);
        if !key.elsewhere && (known || self.store.session.kept().contains_key(name)) {
            let gone = matches!(
                key.action.as_str(),
                "delete" | "expire" | "compareAndDelete"
            );
            self.anchor = (!gone).then(|| Anchor::of(key));
        }
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
}
