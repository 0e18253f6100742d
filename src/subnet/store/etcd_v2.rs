//! Leases in etcd, API v2, laid out as flannel up to v0.17 does
//! (`subnet/etcdv2/registry.go` of v0.11): for clusters whose other nodes speak it.
//!
//! What differs from flannel, on purpose: writes compare the index, where flannel's
//! renewals are unconditional; a record is renewed when a third of its time is over, where
//! flannel waits until an hour before its end; no answer is never taken for an empty list.
//!
//! The v2 API has no sessions: a record lives by its own TTL, so what this store wrote with
//! one is remembered, and [`Store::keep_alive`] renews it.

mod members;
pub mod response;
mod watch;

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hyper::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use tokio::sync::{Mutex, mpsc};

use self::members::{Call, Members, RawResponse};
use self::response::{Key, Response};
use super::etcd::{self, EtcdOptions, EtcdOptionsError};
use super::{Listing, Record, Store, StoreError, StoreErrorKind, WatchEvent, WriteOutcome};
use crate::subnet::lease::LeaseForm;

/// What stays as it is in a path.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A lease store in etcd v2. Cloning is cheap; clones share connection and session.
#[derive(Clone)]
pub struct EtcdV2Store {
    inner: Arc<Inner>,
}

struct Inner {
    members: Members,
    prefix: String,
    config_key: String,
    /// `<prefix>/subnets`, cleaned.
    base: String,
    session: Session,
}

/// Records of ours that live by a TTL.
#[derive(Default)]
struct Session {
    kept: std::sync::Mutex<BTreeMap<String, Kept>>,
    /// Held while a record of ours is written and booked.
    writing: Mutex<()>,
}

impl Session {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        // No panic can leave the map half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own_name(&self) -> Option<String> {
        self.kept().keys().next().cloned()
    }

    /// The record under the index that its keeper knows: renewals are no news to it.
    fn renumbered(&self, mut record: Record) -> Record {
        if let Some(kept) = self.kept().get(&record.name)
            && kept.latest == record.revision
        {
            record.revision = kept.known;
        }
        record
    }
}

/// A record that this store keeps alive.
#[derive(Debug, Clone)]
struct Kept {
    value: Bytes,
    ttl: Duration,
    /// Index that the record's keeper knows: that of its last write.
    known: i64,
    /// Index of the last renewal, which the keeper need not know of.
    latest: i64,
}

impl EtcdV2Store {
    /// Checks the options and reads the TLS files. No connection is made before the first
    /// operation.
    ///
    /// # Errors
    /// When an option can't be meant, with what to do about it.
    pub fn new(options: EtcdOptions) -> Result<Self, EtcdOptionsError> {
        // The v2 tree has a root, and flannel's client puts a slash before every key.
        let prefix = etcd::clean_path(&format!("/{}", options.prefix));
        let inner = Inner {
            members: Members::new(options)?,
            config_key: etcd::join(&prefix, "config"),
            base: etcd::join(&prefix, "subnets"),
            prefix,
            session: Session::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The servers' own version, like `3.4.23`.
    ///
    /// # Errors
    /// When none could be asked.
    pub(crate) async fn server_version(&self) -> Result<String, StoreError> {
        let call = Call {
            method: Method::GET,
            path: "/version".into(),
            form: String::new(),
        };
        let operation = "asking for etcd's version";
        let raw = self.inner.members.call(operation, "", &call).await?;
        let version: Option<serde_json::Value> = serde_json::from_slice(&raw.body).ok();
        let version = version.and_then(|body| Some(body.get("etcdserver")?.as_str()?.to_owned()));
        Ok(version.unwrap_or_default())
    }
}

impl std::fmt::Debug for EtcdV2Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("EtcdV2Store")
            .field(&self.describe())
            .finish()
    }
}

fn path(key: &str, query: &str) -> String {
    let key = percent_encode(key.as_bytes(), PATH);
    let mark = if query.is_empty() { "" } else { "?" };
    format!("/v2/keys{key}{mark}{query}")
}

fn form(value: &[u8], ttl: Option<Duration>) -> String {
    let value = percent_encode(value, NON_ALPHANUMERIC);
    match ttl {
        // etcd counts whole seconds.
        Some(ttl) => format!("ttl={}&value={value}", ttl.as_secs().max(1)),
        None => format!("value={value}"),
    }
}

fn get(key: &str, recursive: bool) -> Call {
    Call {
        method: Method::GET,
        path: path(
            key,
            &format!("quorum=true&recursive={recursive}&sorted=false"),
        ),
        form: String::new(),
    }
}

impl Inner {
    fn key(&self, operation: &'static str, name: &str) -> Result<String, StoreError> {
        StoreError::check_name(operation, &self.members.location(&self.base), name)?;
        Ok(format!("{}/{name}", self.base))
    }

    async fn call(
        &self,
        operation: &'static str,
        key: &str,
        call: &Call,
    ) -> Result<(Response, RawResponse), StoreError> {
        let raw = self.members.call(operation, key, call).await?;
        let failed = |kind, source: Box<dyn std::error::Error + Send + Sync>| StoreError {
            operation,
            location: self.members.location(key),
            kind,
            source,
        };
        match response::parse(raw.status, &raw.body, &self.base) {
            Ok(Response::Refused(text)) => Err(failed(StoreErrorKind::Permanent, text.into())),
            Ok(response) => Ok((response, raw)),
            Err(error) => Err(failed(error.kind(), error.into())),
        }
    }

    fn unexpected(&self, operation: &'static str, key: &str, answer: &Response) -> StoreError {
        StoreError {
            operation,
            location: self.members.location(key),
            kind: StoreErrorKind::Transient,
            source: format!("unexpected answer: {answer:?}").into(),
        }
    }

    fn watch_call(&self, from: i64) -> Call {
        Call {
            method: Method::GET,
            path: path(
                &self.base,
                &format!("recursive=true&wait=true&waitIndex={from}"),
            ),
            form: String::new(),
        }
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        let operation = "listing the leases";
        let (response, raw) = self
            .call(operation, &self.base, &get(&self.base, true))
            .await?;
        let records = match response {
            Response::Directory(records) => records,
            Response::NotFound => Vec::new(),
            other => return Err(self.unexpected(operation, &self.base, &other)),
        };
        let records = records.into_iter();
        Ok(Listing {
            records: records
                .map(|record| self.session.renumbered(record))
                .collect(),
            revision: raw.index,
        })
    }

    async fn read(&self, operation: &'static str, name: &str) -> Result<Option<Key>, StoreError> {
        let key = self.key(operation, name)?;
        match self.call(operation, &key, &get(&key, false)).await?.0 {
            Response::Key(key) if !key.elsewhere => Ok(Some(key)),
            Response::NotFound => Ok(None),
            other => Err(self.unexpected(operation, &key, &other)),
        }
    }

    /// A watch's event as the record's keeper should see it; `None` for a renewal of ours.
    async fn as_seen(&self, event: WatchEvent) -> Option<WatchEvent> {
        let WatchEvent::Put(record) = event else {
            return Some(event);
        };
        if self.session.kept().contains_key(&record.name) {
            // The event of a write may overtake its answer.
            let _booked = self.session.writing.lock().await;
            let kept = self.session.kept().get(&record.name).cloned();
            if kept.is_some_and(|kept| kept.latest == record.revision && kept.known != kept.latest)
            {
                return None;
            }
        }
        Some(WatchEvent::Put(self.session.renumbered(record)))
    }

    /// Writes a record under a condition, and remembers it where it has a TTL.
    async fn write(
        &self,
        operation: &'static str,
        name: &str,
        value: Bytes,
        condition: &str,
        ttl: Option<Duration>,
    ) -> Result<WriteOutcome, StoreError> {
        let key = self.key(operation, name)?;
        let call = Call {
            method: Method::PUT,
            path: path(&key, condition),
            form: form(&value, ttl),
        };
        let _writing = self.session.writing.lock().await;
        let (response, raw) = self.call(operation, &key, &call).await?;
        let revision = match response {
            Response::Key(written) => written.record.revision,
            Response::NotFound | Response::Conflict if raw.unsure => {
                // It may have been our own earlier try that changed the record.
                match self.read(operation, name).await? {
                    Some(found)
                        if found.record.value == value && found.record.expires == ttl.is_some() =>
                    {
                        found.record.revision
                    }
                    _ => return Ok(WriteOutcome::Conflict),
                }
            }
            Response::NotFound | Response::Conflict => return Ok(WriteOutcome::Conflict),
            other => return Err(self.unexpected(operation, &key, &other)),
        };
        let mut session = self.session.kept();
        session.remove(name);
        if let Some(ttl) = ttl {
            let kept = Kept {
                value,
                ttl,
                known: revision,
                latest: revision,
            };
            session.insert(name.to_owned(), kept);
        }
        Ok(WriteOutcome::Written { revision })
    }

    /// The index in the store of a record that its keeper knows by `expected`.
    fn actual(&self, name: &str, expected: i64) -> i64 {
        match self.session.kept().get(name) {
            Some(kept) if kept.known == expected => kept.latest,
            _ => expected,
        }
    }

    /// Renews one record if a third of its time is over; whether it is still ours.
    async fn renew(&self, name: &str, kept: &mut Kept) -> Result<bool, StoreError> {
        let operation = "renewing our lease";
        let Some(found) = self.read(operation, name).await? else {
            return Ok(false);
        };
        if found.record.revision != kept.latest {
            return Ok(false);
        }
        let granted = i64::try_from(kept.ttl.as_secs()).unwrap_or(i64::MAX);
        if found.ttl.is_some_and(|left| left > granted / 3 * 2) {
            return Ok(true);
        }
        let key = self.key(operation, name)?;
        let call = Call {
            method: Method::PUT,
            path: path(&key, &format!("prevIndex={}", kept.latest)),
            form: form(&kept.value, Some(kept.ttl)),
        };
        match self.call(operation, &key, &call).await?.0 {
            Response::Key(written) => {
                kept.latest = written.record.revision;
                Ok(true)
            }
            Response::NotFound | Response::Conflict => Ok(false),
            other => Err(self.unexpected(operation, &key, &other)),
        }
    }
}

#[async_trait]
impl Store for EtcdV2Store {
    fn describe(&self) -> String {
        let endpoints = self.inner.members.endpoints();
        format!("etcd v2 {endpoints} prefix {}", self.inner.prefix)
    }

    fn lease_form(&self) -> LeaseForm {
        LeaseForm::V011
    }

    async fn config(&self) -> Result<Option<Bytes>, StoreError> {
        let operation = "reading the network config";
        let key = &self.inner.config_key;
        match self.inner.call(operation, key, &get(key, false)).await?.0 {
            Response::Key(found) => Ok(Some(found.record.value)),
            Response::NotFound => Ok(None),
            other => Err(self.inner.unexpected(operation, key, &other)),
        }
    }

    async fn put_config(&self, value: Bytes) -> Result<(), StoreError> {
        let operation = "writing the network config";
        let key = &self.inner.config_key;
        let call = Call {
            method: Method::PUT,
            path: path(key, ""),
            form: form(&value, None),
        };
        match self.inner.call(operation, key, &call).await?.0 {
            Response::Key(_) => Ok(()),
            other => Err(self.inner.unexpected(operation, key, &other)),
        }
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        self.inner.list().await
    }

    async fn get(&self, name: &str) -> Result<Option<Record>, StoreError> {
        let found = self.inner.read("reading a lease", name).await?;
        Ok(found.map(|key| self.inner.session.renumbered(key.record)))
    }

    async fn create(
        &self,
        name: &str,
        value: Bytes,
        ttl: Duration,
    ) -> Result<WriteOutcome, StoreError> {
        let operation = "creating a lease";
        self.inner
            .write(operation, name, value, "prevExist=false", Some(ttl))
            .await
    }

    async fn reserve(&self, name: &str, value: Bytes) -> Result<WriteOutcome, StoreError> {
        let operation = "creating a lease";
        self.inner
            .write(operation, name, value, "prevExist=false", None)
            .await
    }

    async fn replace(
        &self,
        name: &str,
        value: Bytes,
        expected: i64,
        ttl: Option<Duration>,
    ) -> Result<WriteOutcome, StoreError> {
        let actual = self.inner.actual(name, expected);
        let condition = format!("prevIndex={actual}");
        self.inner
            .write("writing a lease", name, value, &condition, ttl)
            .await
    }

    async fn delete(&self, name: &str, expected: i64) -> Result<WriteOutcome, StoreError> {
        let operation = "deleting a lease";
        let key = self.inner.key(operation, name)?;
        let actual = self.inner.actual(name, expected);
        let call = Call {
            method: Method::DELETE,
            path: path(&key, &format!("prevIndex={actual}")),
            form: String::new(),
        };
        let (response, raw) = self.inner.call(operation, &key, &call).await?;
        match response {
            Response::Key(deleted) => {
                self.inner.session.kept().remove(name);
                let revision = deleted.record.revision;
                Ok(WriteOutcome::Written { revision })
            }
            Response::NotFound if raw.unsure => Ok(WriteOutcome::Written {
                revision: raw.index,
            }),
            Response::NotFound | Response::Conflict => Ok(WriteOutcome::Conflict),
            other => Err(self.inner.unexpected(operation, &key, &other)),
        }
    }

    async fn keep_alive(&self) -> Result<bool, StoreError> {
        let session = &self.inner.session;
        let _writing = session.writing.lock().await;
        let ours = session.kept().clone();
        let mut all_ours = !ours.is_empty();
        for (name, mut kept) in ours {
            if self.inner.renew(&name, &mut kept).await? {
                session.kept().insert(name, kept);
            } else {
                session.kept().remove(&name);
                all_ours = false;
            }
        }
        Ok(all_ours)
    }

    fn watch(&self, revision: i64) -> mpsc::Receiver<WatchEvent> {
        watch::spawn(Arc::clone(&self.inner), revision)
    }
}
