//! Leases in etcd, API v3, laid out as flannel v0.15 and later do
//! (`pkg/subnet/etcd/registry.go`).
//!
//! What differs from flannel, on purpose: one etcd lease per process that is kept alive,
//! where flannel grants a new one with every renewal; writes compare the revision, where
//! flannel's are unconditional; a record without TTL stays without; a list is one range
//! request, where flannel asks the TTL of every key.
//!
//! Rights that an etcd role needs when auth is enabled: `read` on `<prefix>/config` and
//! `readwrite` on the prefix `<prefix>/subnets/`. Granting and keeping alive a lease need
//! a valid user, but no permission. Revoking one needs write permission on all its keys;
//! nothing here revokes.

mod anchor;
mod connection;
mod failure;
mod pages;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Compare, CompareOp, Error as EtcdError, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse,
    TxnResponse,
};
use tokio::sync::{Mutex, mpsc};

use self::connection::{CallError, Connection};
use self::failure::Fault;
use super::etcd::{self, EtcdOptions, EtcdOptionsError};
use super::{Listing, Record, Store, StoreError, WatchEvent, WriteOutcome, cut};

/// A lease store in etcd v3. Cloning is cheap; clones share connection and session.
#[derive(Clone)]
pub struct EtcdStore {
    inner: Arc<Inner>,
}

struct Inner {
    connection: Connection,
    /// `<prefix>/config`, cleaned.
    config_key: String,
    /// `<prefix>/subnets/`, cleaned, with the slash: `subnets-old` is no sibling of ours.
    records: String,
    prefix: String,
    /// The etcd lease of this process. A lease whose record lost a race stays here for the
    /// next record; it is never left behind.
    session: Mutex<Option<i64>>,
    /// The key that was written last.
    own: std::sync::Mutex<Option<String>>,
}

impl EtcdStore {
    /// Checks the options and reads the TLS files. No connection is made before the first
    /// operation, so etcd may be down.
    ///
    /// # Errors
    /// When an option can't be meant, with what to do about it.
    pub fn new(options: EtcdOptions) -> Result<Self, EtcdOptionsError> {
        let prefix = etcd::clean_path(&options.prefix);
        let connection = Connection::new(options)?;
        let inner = Inner {
            connection,
            config_key: etcd::join(&prefix, "config"),
            records: format!("{}/", etcd::join(&prefix, "subnets")),
            prefix,
            session: Mutex::new(None),
            own: std::sync::Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    async fn create_with(
        &self,
        name: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<WriteOutcome, StoreError> {
        let operation = "creating a lease";
        let key = self.inner.key(operation, name)?;
        let absent = Compare::version(key.as_str(), CompareOp::Equal, 0);
        self.inner.put_if(operation, &key, value, absent, ttl).await
    }
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("EtcdStore").field(&self.describe()).finish()
    }
}

impl Inner {
    fn key(&self, operation: &'static str, name: &str) -> Result<String, StoreError> {
        StoreError::check_name(operation, &self.connection.location(&self.records), name)?;
        Ok(format!("{}{name}", self.records))
    }

    /// The name and revisions of a key below `subnets/`.
    fn record(&self, kv: &KeyValue) -> Record {
        let name = kv
            .key()
            .strip_prefix(self.records.as_bytes())
            .unwrap_or(kv.key());
        Record {
            // A name that is no UTF-8 can't be a subnet's: it only has to be shown.
            name: String::from_utf8_lossy(name).into_owned(),
            value: Bytes::copy_from_slice(cut(kv.value())),
            revision: kv.mod_revision(),
            created: kv.create_revision(),
            expires: kv.lease() != 0,
        }
    }

    /// The session's lease, granted when there is none. The lock is held while granting,
    /// so that two writers share one lease.
    async fn session(&self, key: &str, ttl: Duration) -> Result<i64, StoreError> {
        let mut session = self.session.lock().await;
        if let Some(id) = *session {
            return Ok(id);
        }
        // etcd counts whole seconds and refuses 0.
        let seconds = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        let id = self
            .connection
            .call("granting an etcd lease", key, |client, _| async move {
                Ok(client.lease_client().grant(seconds, None).await?.id())
            })
            .await?;
        *session = Some(id);
        Ok(id)
    }

    /// Forgets the session, unless somebody began a new one already.
    async fn forget(&self, id: i64) {
        let mut session = self.session.lock().await;
        if *session == Some(id) {
            *session = None;
        }
    }

    /// Puts the value if `compare` holds, attached to the session's lease if `ttl` is given.
    async fn put_if(
        &self,
        operation: &'static str,
        key: &str,
        value: Bytes,
        compare: Compare,
        ttl: Option<Duration>,
    ) -> Result<WriteOutcome, StoreError> {
        let mut renewed = false;
        loop {
            let lease = match ttl {
                Some(ttl) => self.session(key, ttl).await?,
                None => 0,
            };
            let put = TxnOp::put(
                key,
                value.clone(),
                Some(PutOptions::new().with_lease(lease)),
            );
            let txn = Txn::new()
                .when([compare.clone()])
                .and_then([put])
                .or_else([TxnOp::get(key, None)]);
            let (txn, value) = (&txn, &value);
            let outcome = self
                .connection
                .call(operation, key, |client, unsure| async move {
                    let answer = client.kv_client().txn(txn.clone()).await?;
                    outcome_of(&answer, unsure, |found| {
                        found.is_some_and(|kv| kv.value() == value && kv.lease() == lease)
                    })
                })
                .await;
            match outcome {
                // The session expired unnoticed: begin another one, once.
                Err(error) if error.fault == Fault::LeaseGone && !renewed => {
                    renewed = true;
                    self.forget(lease).await;
                }
                Ok(WriteOutcome::Written { revision }) => {
                    *self.own() = Some(key.to_owned());
                    return Ok(WriteOutcome::Written { revision });
                }
                other => return other.map_err(CallError::into),
            }
        }
    }
}

/// Reads the answer to a compared write whose else branch reads the key.
///
/// Where an earlier try of the same write was sent but not answered (`unsure`), a failed
/// comparison may be due to that very try: `already_done` looks at the key as it is.
fn outcome_of(
    answer: &TxnResponse,
    unsure: bool,
    already_done: impl Fn(Option<&KeyValue>) -> bool,
) -> Result<WriteOutcome, EtcdError> {
    if answer.succeeded() {
        let revision = revision_of(answer.header())?;
        return Ok(WriteOutcome::Written { revision });
    }
    let responses = answer.op_responses();
    let found = responses.iter().find_map(|response| match response {
        TxnOpResponse::Get(get) => get.kvs().first(),
        _ => None,
    });
    if unsure && already_done(found) {
        let revision = match found {
            Some(kv) => kv.mod_revision(),
            None => revision_of(answer.header())?,
        };
        return Ok(WriteOutcome::Written { revision });
    }
    Ok(WriteOutcome::Conflict)
}

fn revision_of(header: Option<&etcd_client::ResponseHeader>) -> Result<i64, EtcdError> {
    header
        .map(etcd_client::ResponseHeader::revision)
        .ok_or_else(|| EtcdError::Internal("the answer has no header, so no revision".into()))
}

#[async_trait]
impl Store for EtcdStore {
    fn describe(&self) -> String {
        let endpoints = self.inner.connection.endpoints();
        format!("etcd v3 {endpoints} prefix {}", self.inner.prefix)
    }

    async fn config(&self) -> Result<Option<Bytes>, StoreError> {
        let key = &self.inner.config_key;
        let value = self
            .inner
            .connection
            .call("reading the network config", key, |client, _| async move {
                let answer = client.kv_client().get(key.as_str(), None).await?;
                Ok(answer
                    .kvs()
                    .first()
                    .map(|kv| Bytes::copy_from_slice(kv.value())))
            })
            .await?;
        Ok(value)
    }

    async fn put_config(&self, value: Bytes) -> Result<(), StoreError> {
        let key = &self.inner.config_key;
        let value = &value;
        let put = |client: etcd_client::Client, _| async move {
            let mut kv = client.kv_client();
            kv.put(key.as_str(), value.clone(), None).await.map(drop)
        };
        let operation = "writing the network config";
        Ok(self.inner.connection.call(operation, key, put).await?)
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        self.inner.list().await
    }

    async fn get(&self, name: &str) -> Result<Option<Record>, StoreError> {
        let operation = "reading a lease";
        let key = &self.inner.key(operation, name)?;
        let inner = &self.inner;
        let record = inner
            .connection
            .call(operation, key, |client, _| async move {
                let answer = client.kv_client().get(key.as_str(), None).await?;
                Ok(answer.kvs().first().map(|kv| inner.record(kv)))
            })
            .await?;
        Ok(record)
    }

    async fn create(
        &self,
        name: &str,
        value: Bytes,
        ttl: Duration,
    ) -> Result<WriteOutcome, StoreError> {
        self.create_with(name, value, Some(ttl)).await
    }

    async fn reserve(&self, name: &str, value: Bytes) -> Result<WriteOutcome, StoreError> {
        self.create_with(name, value, None).await
    }

    async fn replace(
        &self,
        name: &str,
        value: Bytes,
        expected: i64,
        ttl: Option<Duration>,
    ) -> Result<WriteOutcome, StoreError> {
        let operation = "writing a lease";
        let key = self.inner.key(operation, name)?;
        let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, expected);
        self.inner
            .put_if(operation, &key, value, unchanged, ttl)
            .await
    }

    async fn delete(&self, name: &str, expected: i64) -> Result<WriteOutcome, StoreError> {
        let operation = "deleting a lease";
        let key = self.inner.key(operation, name)?;
        let txn = Txn::new()
            .when([Compare::mod_revision(
                key.as_str(),
                CompareOp::Equal,
                expected,
            )])
            .and_then([TxnOp::delete(key.as_str(), None)])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let txn = &txn;
        let outcome = self
            .inner
            .connection
            .call(operation, &key, |client, unsure| async move {
                let answer = client.kv_client().txn(txn.clone()).await?;
                outcome_of(&answer, unsure, |found| found.is_none())
            })
            .await?;
        Ok(outcome)
    }

    async fn keep_alive(&self) -> Result<bool, StoreError> {
        let Some(id) = *self.inner.session.lock().await else {
            return Ok(false);
        };
        let operation = "keeping the etcd lease alive";
        let ping = |client: etcd_client::Client, _| async move {
            client.lease_client().keep_alive(id).await.map(drop)
        };
        let inner = &self.inner;
        let alive = match inner.connection.call(operation, &inner.records, ping).await {
            Ok(()) => true,
            Err(error) if error.fault == Fault::LeaseGone => false,
            Err(error) => return Err(error.into()),
        };
        if !alive {
            self.inner.forget(id).await;
        }
        Ok(alive)
    }

    fn watch(&self, revision: i64) -> mpsc::Receiver<WatchEvent> {
        watch::spawn(Arc::clone(&self.inner), revision)
    }
}
