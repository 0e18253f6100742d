//! Keeps our lease alive, and gets it back when it is lost, in place.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::super::key::SubnetKey;
use super::super::lease::{LeaseAttrs, NodeId};
use super::super::store::{Record, Store, StoreError, StoreErrorKind, WatchEvent, WriteOutcome};
use super::acquire::Acquired;
use super::books::Books;
use super::claim::{self, Answer, mac};

/// A sign of life is cheap, and a lost session should be noticed before the day is over.
const LONGEST_INTERVAL: Duration = Duration::from_secs(600);
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Longest wait while the store does not answer: it may be back at any time, and what is
/// left of our lease be short.
const UNANSWERED: Duration = Duration::from_secs(4);

/// How our lease stands. Forwarding goes on in every state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnState {
    /// It is ours, as far as the store said last.
    Held,
    /// The store can't be asked, or refuses: what it said last.
    Unconfirmed(String),
    /// The record is another host's now. It is not overwritten.
    TakenBy(Ipv4Addr),
    /// The record has our public IP, and another VTEP MAC or machine: another daemon, on this host or
    /// on one with the same address. It is not overwritten.
    Contended,
    /// The record's value can't be read. It is not overwritten.
    Unreadable,
}

/// What a record under our name is to us.
enum Finding {
    /// As we wrote it.
    Unchanged,
    /// Not ours to the byte or the revision, but it says the same.
    Equivalent,
    /// Our value, and somebody asks whether we live.
    Asked,
    Foreign(OwnState),
}

/// The keeper of one lease.
#[derive(Debug)]
pub struct Keeper {
    store: Arc<dyn Store>,
    name: String,
    value: Bytes,
    attrs: LeaseAttrs,
    revision: i64,
    reserved: bool,
    ttl: Duration,
    interval: Duration,
    state: watch::Sender<OwnState>,
    due: Instant,
    failures: u32,
    /// The session ended and no record was written since.
    session_lost: bool,
    /// What is to be published instead, until that is written.
    wanted: Option<LeaseAttrs>,
    books: Arc<Books>,
}

impl std::fmt::Debug for dyn Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}

/// Time between signs of life: a third of the TTL, at latest `margin` before its end, and
/// never more than ten minutes.
#[must_use]
pub fn interval(ttl: Duration, margin: Duration) -> Duration {
    (ttl / 3)
        .min(ttl.saturating_sub(margin))
        .clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL)
}

impl Keeper {
    /// Takes over a lease that was just acquired.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, acquired: &Acquired, margin: Duration) -> Self {
        let lease = &acquired.lease;
        let interval = interval(acquired.ttl, margin);
        let (state, first) = match acquired.is_cached() {
            true => {
                let reason = "the store has not answered since the start".into();
                (OwnState::Unconfirmed(reason), BACKOFF.0)
            }
            false => (OwnState::Held, interval),
        };
        let books = Arc::<Books>::default();
        books.lives((!lease.reserved).then_some(acquired.ttl));
        Self {
            store,
            name: SubnetKey::from(lease.subnet).to_string(),
            value: acquired.value.clone(),
            attrs: lease.attrs.clone(),
            revision: lease.revision,
            reserved: lease.reserved,
            ttl: acquired.ttl,
            interval,
            state: watch::Sender::new(state),
            due: Instant::now() + first,
            failures: 0,
            session_lost: false,
            wanted: None,
            books,
        }
    }

    /// What is counted of the lease's life.
    #[must_use]
    pub fn books(&self) -> Arc<Books> {
        Arc::clone(&self.books)
    }

    /// Follows the lease's state.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<OwnState> {
        self.state.subscribe()
    }

    /// When [`Self::renew`] is to be called next.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Whether an event says something new about our record, so that [`Self::look`] is
    /// to be called.
    #[must_use]
    pub fn concerns(&self, event: &WatchEvent) -> bool {
        match event {
            WatchEvent::Put(record) => record.name == self.name && record.revision != self.revision,
            WatchEvent::Delete { name, .. } => *name == self.name,
            WatchEvent::Resync(listing) => !listing
                .records
                .iter()
                .any(|record| record.name == self.name && record.revision == self.revision),
        }
    }

    /// Publishes something else under the same subnet: this host has another address.
    pub async fn republish(&mut self, attrs: LeaseAttrs) {
        self.wanted = Some(attrs);
        self.look().await;
    }

    /// Gives a sign of life; where the session is gone or the lease was not ours, looks
    /// at the record.
    pub async fn renew(&mut self) {
        let settled = *self.state.borrow() == OwnState::Held && self.wanted.is_none();
        if !settled || self.reserved || self.session_lost {
            return self.look().await;
        }
        match self.store.keep_alive().await {
            Ok(true) => self.settle(OwnState::Held),
            Ok(false) => {
                self.session_lost = true;
                self.look().await;
            }
            Err(error) => self.settle(OwnState::Unconfirmed(error.to_string())),
        }
    }

    /// Reads our record and does what is due: nothing, or writes it anew in place. A
    /// record of somebody else is never overwritten.
    pub async fn look(&mut self) {
        let state = match self.restore().await {
            Ok(state) => state,
            Err(error) => OwnState::Unconfirmed(error.to_string()),
        };
        self.settle(state);
    }

    async fn restore(&mut self) -> Result<OwnState, StoreError> {
        let value = self.value_to_write()?;
        let Some(record) = self.store.get(&self.name).await? else {
            let outcome = self.put_back(value.clone()).await?;
            return Ok(self.note(outcome, value));
        };
        let finding = self.judge(&record);
        // Most likely our own, from before the reboot after which we started from the cache.
        if self.revision == 0
            && matches!(finding, Finding::Foreign(OwnState::Contended))
            && let Some(state) = self.claim(&record, value.clone()).await?
        {
            return Ok(state);
        }
        if !matches!(finding, Finding::Foreign(_)) {
            // A person may make a reservation of it, or take that back.
            self.reserved = !record.expires;
        }
        match finding {
            Finding::Foreign(state) => Ok(state),
            Finding::Asked => {
                info!(
                    event = "lease_asked",
                    name = self.name,
                    "another host asked for our lease: answering"
                );
                self.write_over(&record, value).await
            }
            _ if self.wanted.is_some() || (self.session_lost && !self.reserved) => {
                // It says what is not true any more, or nothing keeps it alive: it has to be
                // bound to a new session.
                self.write_over(&record, value).await
            }
            Finding::Unchanged => self.confirm().await,
            // Two daemons with the same MAC (an upgrade) must not write in turns.
            Finding::Equivalent => {
                self.revision = record.revision;
                self.confirm().await
            }
        }
    }

    /// Takes a record that our machine wrote in another life, if nobody lives that one.
    async fn claim(
        &mut self,
        record: &Record,
        value: Bytes,
    ) -> Result<Option<OwnState>, StoreError> {
        let found = LeaseAttrs::decode(&record.value).ok();
        let ours = |found: &LeaseAttrs| {
            !differ(found.node, self.attrs.node) && differ(found.instance, self.attrs.instance)
        };
        let Some(found) = found.filter(ours) else {
            return Ok(None);
        };
        let store = Arc::clone(&self.store);
        let question = claim::question(store.as_ref(), &found, rand::random());
        let question = question.map_err(|source| self.not_written(source))?;
        let asking = claim::put_question(store.as_ref(), record, &found, question, self.ttl);
        Ok(Some(match asking.await? {
            Answer::Lives => OwnState::Contended,
            Answer::Changed => OwnState::Unconfirmed("it changed while we asked".into()),
            Answer::Silence { revision } => {
                self.reserved = !record.expires;
                let record = Record {
                    revision,
                    ..record.clone()
                };
                self.write_over(&record, value).await?
            }
        }))
    }

    async fn write_over(&mut self, record: &Record, value: Bytes) -> Result<OwnState, StoreError> {
        let ttl = (!self.reserved).then_some(self.ttl);
        let outcome = self
            .store
            .replace(&self.name, value.clone(), record.revision, ttl)
            .await?;
        Ok(self.note(outcome, value))
    }

    fn value_to_write(&self) -> Result<Bytes, StoreError> {
        let Some(wanted) = &self.wanted else {
            return Ok(self.value.clone());
        };
        let encoded = wanted.encode_as(self.store.lease_form());
        encoded
            .map(Bytes::from)
            .map_err(|source| self.not_written(source))
    }

    fn not_written(&self, source: serde_json::Error) -> StoreError {
        StoreError {
            operation: "writing our lease as JSON",
            location: self.name.clone(),
            kind: StoreErrorKind::Permanent,
            source: source.into(),
        }
    }

    /// Our record is gone: the same subnet again, if nobody has it.
    async fn put_back(&self, value: Bytes) -> Result<WriteOutcome, StoreError> {
        warn!(
            event = "lease_removed",
            name = self.name,
            "our lease has been removed from the store: taking the same subnet again"
        );
        match self.reserved {
            true => self.store.reserve(&self.name, value).await,
            false => self.store.create(&self.name, value, self.ttl).await,
        }
    }

    /// The record is fine; the state was not: is the session?
    async fn confirm(&mut self) -> Result<OwnState, StoreError> {
        if !self.reserved && !self.store.keep_alive().await? {
            self.session_lost = true;
            return Ok(OwnState::Unconfirmed("the session has expired".into()));
        }
        Ok(OwnState::Held)
    }

    fn note(&mut self, outcome: WriteOutcome, value: Bytes) -> OwnState {
        match outcome {
            WriteOutcome::Written { revision } => {
                self.value = value;
                if let Some(attrs) = self.wanted.take() {
                    info!(event = "lease_published", name = self.name, public_ip = %attrs.public_ip, "published anew");
                    self.attrs = attrs;
                }
                self.revision = revision;
                self.session_lost = false;
                OwnState::Held
            }
            WriteOutcome::Conflict => OwnState::Unconfirmed("it changed while we wrote".into()),
        }
    }

    fn judge(&self, record: &Record) -> Finding {
        if record.revision == self.revision {
            return Finding::Unchanged;
        }
        let Ok(found) = LeaseAttrs::decode(&record.value) else {
            return Finding::Foreign(OwnState::Unreadable);
        };
        if found.public_ip != self.attrs.public_ip {
            return Finding::Foreign(OwnState::TakenBy(found.public_ip));
        }
        if differ(found.node, self.attrs.node) || differ(found.instance, self.attrs.instance) {
            return Finding::Foreign(OwnState::Contended);
        }
        if found.challenge.is_some() && found.instance == self.attrs.instance {
            return Finding::Asked;
        }
        if record.value == self.value || mac(&found) == mac(&self.attrs) {
            return Finding::Equivalent;
        }
        Finding::Foreign(OwnState::Contended)
    }

    /// Notes the state, says so once per change, and sets the time of the next look.
    fn settle(&mut self, new: OwnState) {
        let now = Instant::now();
        self.books.renewed(new == OwnState::Held);
        if new == OwnState::Held {
            self.books.lives((!self.reserved).then_some(self.ttl));
            self.failures = 0;
            self.due = now + self.interval;
        } else {
            let longest = match new {
                OwnState::Unconfirmed(_) => UNANSWERED,
                _ => BACKOFF.1,
            };
            let wait = BACKOFF
                .0
                .saturating_mul(1 << self.failures.min(10))
                .min(longest);
            self.failures = self.failures.saturating_add(1);
            self.due = now + wait;
        }
        let old = self.state.send_replace(new.clone());
        if is_told(&old, &new) {
            return;
        }
        let name = &self.name;
        match new {
            OwnState::Held => info!(event = "lease_held", name, "our lease is ours again"),
            OwnState::Unconfirmed(reason) => {
                warn!(
                    event = "lease_unconfirmed",
                    name, reason, "our lease can't be renewed; forwarding goes on"
                );
            }
            OwnState::TakenBy(holder) => error!(event = "lease_taken",
                name,
                %holder,
                "our subnet was taken by another host; forwarding goes on, but two hosts have \
                 the same subnet: delete the other's record, or stop this host and let it take \
                 another subnet"
            ),
            OwnState::Contended => error!(event = "lease_contended",
                name,
                public_ip = %self.attrs.public_ip,
                "another daemon or machine writes our lease with our public IP: give each \
                 host its own --public-ip, or stop the other daemon"
            ),
            OwnState::Unreadable => error!(
                event = "lease_unreadable",
                name, "our lease was overwritten with something unreadable: delete the record"
            ),
        }
    }
}

/// Whether both are named, and are not the same.
fn differ(found: Option<NodeId>, ours: Option<NodeId>) -> bool {
    found.is_some() && ours.is_some() && found != ours
}

/// Whether a person who read of the old state knows the new one. Another reason why the
/// lease cannot be renewed is news (the store answers again, and now refuses); another time or
/// port in it is not.
fn is_told(old: &OwnState, new: &OwnState) -> bool {
    let words = |reason: &str| reason.replace(|c: char| c.is_ascii_digit(), "");
    match (old, new) {
        (OwnState::Unconfirmed(old), OwnState::Unconfirmed(new)) => words(old) == words(new),
        _ => std::mem::discriminant(old) == std::mem::discriminant(new),
    }
}
