//! Renews our lease, and acquires it again in place when it is lost.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::super::key::SubnetKey;
use super::super::lease::{LeaseAttrs, NodeId};
use super::super::store::{Record, Store, StoreError, WatchEvent, WriteOutcome};
use super::acquire::Acquired;
use super::counters::LeaseCounters;
use super::ownership::{Reaction, cannot_encode, challenge, mac};

/// Renewals are cheap, and a lost session should be noticed long before the TTL ends.
const LONGEST_INTERVAL: Duration = Duration::from_secs(600);
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Longest wait while the store does not answer: it may be back at any time, and our lease may be
/// about to expire.
const UNANSWERED_BACKOFF: Duration = Duration::from_secs(4);

/// State of our lease. Forwarding continues in every state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnState {
    /// It is ours, by the store's latest answer.
    Held,
    /// The store does not answer, or refuses; its latest error.
    Unconfirmed(String),
    /// The record is another host's now. It is not overwritten.
    TakenBy(Ipv4Addr),
    /// The record has our public IP and another VTEP MAC or machine: there is another daemon, on this
    /// host or on one with the same address. It is not overwritten.
    Contended,
    /// The record's value can't be read. It is not overwritten.
    Unreadable,
}

/// How the record under our name compares with what we wrote.
enum RecordState {
    Unchanged,
    /// Another revision or form, with the same content.
    Equivalent,
    /// Our value with another host's challenge.
    Challenged,
    Foreign(OwnState),
}

/// Renewal of one lease.
#[derive(Debug)]
pub(super) struct Renewal {
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
    /// What to publish instead, until that is written.
    wanted: Option<LeaseAttrs>,
    counters: Arc<LeaseCounters>,
}

impl std::fmt::Debug for dyn Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}

/// Time between renewals: a third of the TTL, at the latest `margin` before its end, and at most
/// ten minutes.
pub(super) fn interval(ttl: Duration, margin: Duration) -> Duration {
    (ttl / 3)
        .min(ttl.saturating_sub(margin))
        .clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL)
}

impl Renewal {
    pub(super) fn new(store: Arc<dyn Store>, acquired: &Acquired, margin: Duration) -> Self {
        let lease = &acquired.lease;
        let interval = interval(acquired.ttl, margin);
        let (state, first) = match acquired.is_cached() {
            true => {
                let reason = "the store has not answered since the start".into();
                (OwnState::Unconfirmed(reason), BACKOFF.0)
            }
            false => (OwnState::Held, interval),
        };
        let counters = Arc::<LeaseCounters>::default();
        counters.set_ttl((!lease.reserved).then_some(acquired.ttl));
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
            counters,
        }
    }

    pub(super) fn counters(&self) -> &Arc<LeaseCounters> {
        &self.counters
    }

    pub(super) fn state(&self) -> watch::Receiver<OwnState> {
        self.state.subscribe()
    }

    /// When to call [`Self::renew`] next.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Whether an event reports a change of our record, so that [`Self::check`] has to be called.
    pub(super) fn concerns(&self, event: &WatchEvent) -> bool {
        match event {
            WatchEvent::Put(record) => record.name == self.name && record.revision != self.revision,
            WatchEvent::Delete { name, .. } => *name == self.name,
            WatchEvent::Resync(listing) => !listing
                .records
                .iter()
                .any(|record| record.name == self.name && record.revision == self.revision),
        }
    }

    /// Publishes something else under the same subnet: this host has a new address.
    pub(super) async fn republish(&mut self, attrs: LeaseAttrs) {
        self.wanted = Some(attrs);
        self.check().await;
    }

    /// Sends a keepalive; if the session is gone or the lease was not ours, checks the record.
    pub(super) async fn renew(&mut self) {
        let settled = *self.state.borrow() == OwnState::Held && self.wanted.is_none();
        if !settled || self.reserved || self.session_lost {
            return self.check().await;
        }
        match self.store.keep_alive().await {
            Ok(true) => self.settle(OwnState::Held),
            Ok(false) => {
                self.session_lost = true;
                self.check().await;
            }
            Err(error) => self.settle(OwnState::Unconfirmed(error.to_string())),
        }
    }

    /// Reads our record, and writes it again in place if necessary. Another host's record is
    /// never overwritten.
    pub(super) async fn check(&mut self) {
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
        let found = self.compare(&record);
        // Most likely ours, of before a reboot after which we started from the offline cache.
        if self.revision == 0
            && matches!(found, RecordState::Foreign(OwnState::Contended))
            && let Some(state) = self.reclaim(&record, value.clone()).await?
        {
            return Ok(state);
        }
        if !matches!(found, RecordState::Foreign(_)) {
            // An administrator may turn it into a reservation, or undo that.
            self.reserved = !record.expires;
        }
        match found {
            RecordState::Foreign(state) => Ok(state),
            RecordState::Challenged => {
                info!(
                    event = "lease_asked",
                    name = self.name,
                    "another host asked whether we are alive: answering"
                );
                self.write_over(&record, value).await
            }
            _ if self.wanted.is_some() || (self.session_lost && !self.reserved) => {
                // It is out of date, or has to be bound to a new session.
                self.write_over(&record, value).await
            }
            RecordState::Unchanged => self.confirm().await,
            // Two daemons with the same MAC (during an upgrade) must not overwrite each other
            // forever.
            RecordState::Equivalent => {
                self.revision = record.revision;
                self.confirm().await
            }
        }
    }

    /// Takes a record that our machine wrote as another instance, if that one is gone.
    async fn reclaim(
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
        let reaction = challenge(store.as_ref(), record, &found, rand::random(), self.ttl);
        Ok(Some(match reaction.await? {
            Reaction::Alive => OwnState::Contended,
            Reaction::Changed => OwnState::Unconfirmed("it changed while we asked".into()),
            Reaction::Silence { revision } => {
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
        let encoded = encoded.map_err(|error| cannot_encode(&self.name, error))?;
        Ok(encoded.into())
    }

    /// Our record is gone: takes the same subnet again if it is free.
    async fn put_back(&self, value: Bytes) -> Result<WriteOutcome, StoreError> {
        warn!(
            event = "lease_removed",
            name = self.name,
            "our lease was removed from the store: taking the same subnet again"
        );
        match self.reserved {
            true => self.store.reserve(&self.name, value).await,
            false => self.store.create(&self.name, value, self.ttl).await,
        }
    }

    /// The record is fine; checks the session.
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
                    info!(event = "lease_published", name = self.name, public_ip = %attrs.public_ip, "our lease has a new value");
                    self.attrs = attrs;
                }
                self.revision = revision;
                self.session_lost = false;
                OwnState::Held
            }
            WriteOutcome::Conflict => OwnState::Unconfirmed("it changed while we wrote".into()),
        }
    }

    fn compare(&self, record: &Record) -> RecordState {
        if record.revision == self.revision {
            return RecordState::Unchanged;
        }
        let Ok(found) = LeaseAttrs::decode(&record.value) else {
            return RecordState::Foreign(OwnState::Unreadable);
        };
        if found.public_ip != self.attrs.public_ip {
            return RecordState::Foreign(OwnState::TakenBy(found.public_ip));
        }
        if differ(found.node, self.attrs.node) || differ(found.instance, self.attrs.instance) {
            return RecordState::Foreign(OwnState::Contended);
        }
        if found.challenge.is_some() && found.instance == self.attrs.instance {
            return RecordState::Challenged;
        }
        if record.value == self.value || mac(&found) == mac(&self.attrs) {
            return RecordState::Equivalent;
        }
        RecordState::Foreign(OwnState::Contended)
    }

    /// Sets the state, logs a change once, and schedules the next renewal.
    fn settle(&mut self, new: OwnState) {
        let now = Instant::now();
        self.counters.count_renewal(new == OwnState::Held);
        if new == OwnState::Held {
            self.counters.set_ttl((!self.reserved).then_some(self.ttl));
            self.failures = 0;
            self.due = now + self.interval;
        } else {
            let longest = match new {
                OwnState::Unconfirmed(_) => UNANSWERED_BACKOFF,
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
        if is_known(&old, &new) {
            return;
        }
        let name = &self.name;
        match new {
            OwnState::Held => info!(event = "lease_held", name, "our lease is ours again"),
            OwnState::Unconfirmed(reason) => {
                warn!(
                    event = "lease_unconfirmed",
                    name, reason, "our lease cannot be renewed; forwarding continues"
                );
            }
            OwnState::TakenBy(holder) => error!(event = "lease_taken",
                name,
                %holder,
                "our subnet was taken by another host; forwarding continues, but two hosts have \
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

/// Whether both are known and differ.
fn differ(found: Option<NodeId>, ours: Option<NodeId>) -> bool {
    found.is_some() && ours.is_some() && found != ours
}

/// Whether the log says the same already. Another reason why the lease cannot be renewed is worth a
/// line (the store answers again, and now refuses); another time or port in it is not.
fn is_known(old: &OwnState, new: &OwnState) -> bool {
    let text = |reason: &str| reason.replace(|c: char| c.is_ascii_digit(), "");
    match (old, new) {
        (OwnState::Unconfirmed(old), OwnState::Unconfirmed(new)) => text(old) == text(new),
        _ => std::mem::discriminant(old) == std::mem::discriminant(new),
    }
}
