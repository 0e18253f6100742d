//! A store in memory that can be broken.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{broadcast, mpsc};

use crate::subnet::store::{
    Listing, Record, Store, StoreError, StoreErrorKind, WatchEvent, WriteOutcome,
};

#[derive(Default)]
pub(super) struct State {
    pub(super) records: BTreeMap<String, Record>,
    pub(super) revision: i64,
    pub(super) down: bool,
    pub(super) session: bool,
    /// Writes that fail with a conflict before one is let through.
    pub(super) conflicts: usize,
    pub(super) writes: usize,
    pub(super) signs_of_life: usize,
}

/// A store in memory that can be broken.
pub(super) struct Memory {
    state: Mutex<State>,
    /// `None` ends all watches.
    events: broadcast::Sender<Option<WatchEvent>>,
}

impl Memory {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            events: broadcast::Sender::new(10_000),
        })
    }

    /// Writes as somebody else would, unconditionally.
    pub(super) fn put(&self, name: &str, value: Bytes, expires: bool) -> i64 {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        let revision = state.revision;
        let created = state.records.get(name).map_or(revision, |old| old.created);
        let record = Record {
            name: name.into(),
            value,
            revision,
            created,
            expires,
        };
        state.records.insert(name.into(), record.clone());
        let _ = self.events.send(Some(WatchEvent::Put(record)));
        revision
    }

    pub(super) fn remove(&self, name: &str) {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        let revision = state.revision;
        assert!(state.records.remove(name).is_some(), "{name}");
        let _ = self.events.send(Some(WatchEvent::Delete {
            name: name.into(),
            revision,
        }));
    }

    /// Ends the watch's history: everybody gets the list.
    pub(super) fn compact(&self) {
        let state = self.state.lock().unwrap();
        let records = state.records.values().cloned().collect();
        let revision = state.revision;
        let _ = self
            .events
            .send(Some(WatchEvent::Resync(Listing { records, revision })));
    }

    /// Against the contract of a store.
    pub(super) fn end_watches(&self) {
        let _ = self.events.send(None);
    }

    pub(super) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    pub(super) fn value_of(&self, name: &str) -> Option<Bytes> {
        self.with(|state| state.records.get(name).map(|record| record.value.clone()))
    }

    fn up(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.state.lock().unwrap();
        if state.down {
            let source = "broken by the test".into();
            let location = "memory".into();
            return Err(StoreError {
                operation: "asking",
                location,
                kind: StoreErrorKind::Transient,
                source,
            });
        }
        Ok(state)
    }

    fn write(
        &self,
        name: &str,
        value: Option<Bytes>,
        expected: Option<i64>,
        ttl: Option<Duration>,
    ) -> Result<WriteOutcome, StoreError> {
        let mut state = self.up()?;
        if state.conflicts > 0 {
            state.conflicts -= 1;
            return Ok(WriteOutcome::Conflict);
        }
        if state.records.get(name).map(|record| record.revision) != expected {
            return Ok(WriteOutcome::Conflict);
        }
        state.writes += 1;
        state.session |= ttl.is_some();
        drop(state);
        match value {
            Some(value) => drop(self.put(name, value, ttl.is_some())),
            None => self.remove(name),
        }
        Ok(WriteOutcome::Written {
            revision: self.with(|state| state.revision),
        })
    }
}

#[async_trait]
impl Store for Memory {
    fn describe(&self) -> String {
        "memory".into()
    }

    async fn config(&self) -> Result<Option<Bytes>, StoreError> {
        self.up().map(|_| None)
    }

    async fn put_config(&self, _: Bytes) -> Result<(), StoreError> {
        self.up().map(drop)
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        let state = self.up()?;
        let records = state.records.values().cloned().collect();
        Ok(Listing {
            records,
            revision: state.revision,
        })
    }

    async fn get(&self, name: &str) -> Result<Option<Record>, StoreError> {
        Ok(self.up()?.records.get(name).cloned())
    }

    async fn create(&self, n: &str, v: Bytes, ttl: Duration) -> Result<WriteOutcome, StoreError> {
        self.write(n, Some(v), None, Some(ttl))
    }

    async fn reserve(&self, name: &str, value: Bytes) -> Result<WriteOutcome, StoreError> {
        self.write(name, Some(value), None, None)
    }

    async fn replace(
        &self,
        name: &str,
        value: Bytes,
        expected: i64,
        ttl: Option<Duration>,
    ) -> Result<WriteOutcome, StoreError> {
        self.write(name, Some(value), Some(expected), ttl)
    }

    async fn delete(&self, name: &str, expected: i64) -> Result<WriteOutcome, StoreError> {
        self.write(name, None, Some(expected), None)
    }

    async fn keep_alive(&self) -> Result<bool, StoreError> {
        let mut state = self.up()?;
        state.signs_of_life += 1;
        Ok(state.session)
    }

    fn watch(&self, _revision: i64) -> mpsc::Receiver<WatchEvent> {
        let (sender, receiver) = mpsc::channel(64);
        let mut events = self.events.subscribe();
        tokio::spawn(async move {
            while let Ok(Some(event)) = events.recv().await {
                if sender.send(event).await.is_err() {
                    return;
                }
            }
        });
        receiver
    }
}
