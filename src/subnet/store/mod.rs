//! Where leases lie: one trait, and one file for each kind of store.

mod config;
pub mod dir;
mod error;
pub mod etcd;
pub mod etcd_auto;
pub mod etcd_v2;
pub mod etcd_v3;
pub(super) mod feed;
mod secret;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

pub use self::config::{StoreConfig, StoreIdentity};
pub use self::error::{StoreError, StoreErrorKind};
pub use self::secret::Secret;
use super::lease::LeaseForm;
use super::validate::MAX_VALUE_LEN;

/// One record below `<prefix>/subnets/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The part of the key behind `subnets/`, unchecked, as found.
    pub name: String,
    /// The value, unchecked, as found; of one that is too large only the beginning.
    pub value: Bytes,
    /// Revision of the last write, for compare-and-swap; never 0 in an existing record.
    pub revision: i64,
    /// Order of creation: the record with the lower number is the older one. Only good for
    /// comparing records of one store.
    pub created: i64,
    /// Whether the store will remove the record by itself (it has a TTL).
    pub expires: bool,
}

/// A complete list of the records: what is absent here is absent in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// All records, in no particular order.
    pub records: Vec<Record>,
    /// Store revision at which the list was complete: a watch goes on from here.
    pub revision: i64,
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// A record was created or written.
    Put(Record),
    /// A record was deleted or expired; `revision` is the deletion's.
    Delete {
        /// The part of the key behind `subnets/`.
        name: String,
        /// Revision of the deletion.
        revision: i64,
    },
    /// History before the watch's cursor is gone (compaction) or the watch missed
    /// something: here is a complete list to compare with. Only ever complete.
    Resync(Listing),
}

/// How a conditional write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Written; the record's new revision.
    Written {
        /// Revision of the write.
        revision: i64,
    },
    /// The record was not as expected (exists, or was changed or deleted by somebody).
    Conflict,
}

/// What is kept of a value: enough to see that it is too large, and no more.
fn cut(value: &[u8]) -> &[u8] {
    &value[..value.len().min(MAX_VALUE_LEN + 1)]
}

/// How long the holder of a lease takes to respond to a challenge if events arrive at once.
pub(crate) const CHALLENGE_TIMEOUT: Duration = Duration::from_secs(3);

/// A store of the network config and the subnet leases, laid out as flannel's
/// (`<prefix>/config`, `<prefix>/subnets/<a.b.c.d>-<len>`).
///
/// A store knows no lease rules: it moves records. It never reports an error as an empty
/// list, and never gives up a watch: it reconnects by itself, and where history was lost
/// it sends [`WatchEvent::Resync`].
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Kind and place for logs, without secrets: `etcd v3 http://127.0.0.1:2379 prefix /coreos.com/network`.
    fn describe(&self) -> String;

    /// Which version of flannel the values are written for.
    fn lease_form(&self) -> LeaseForm {
        LeaseForm::Newest
    }

    /// Within this time a live host has seen a write to its record, and has overwritten it.
    fn challenge_timeout(&self) -> Duration {
        CHALLENGE_TIMEOUT
    }

    /// The network config's text, or `None` where the key does not exist.
    ///
    /// # Errors
    /// When the store could not be asked.
    async fn config(&self) -> Result<Option<Bytes>, StoreError>;

    /// Where a config that is not here may lie instead, and what to do; for a person.
    async fn why_no_config(&self) -> Option<&'static str> {
        None
    }

    /// Writes the network config, whatever was there. For people; the daemon never does.
    ///
    /// # Errors
    /// When the store could not be asked, or did not answer whether it wrote.
    async fn put_config(&self, value: Bytes) -> Result<(), StoreError>;

    /// All records, complete, with the revision from which a watch continues.
    ///
    /// # Errors
    /// When the list could not be read whole.
    async fn list(&self) -> Result<Listing, StoreError>;

    /// One record, or `None` where it does not exist.
    ///
    /// # Errors
    /// When the store could not be asked.
    async fn get(&self, name: &str) -> Result<Option<Record>, StoreError>;

    /// Writes a record only if it is absent; it lives as long as this store's session
    /// is kept alive, `ttl` beyond the last sign of life.
    ///
    /// # Errors
    /// When the store could not be asked, or did not answer whether it wrote.
    async fn create(
        &self,
        name: &str,
        value: Bytes,
        ttl: Duration,
    ) -> Result<WriteOutcome, StoreError>;

    /// Writes a record only if it is absent, without time to live: a reservation.
    ///
    /// # Errors
    /// When the store could not be asked, or did not answer whether it wrote.
    async fn reserve(&self, name: &str, value: Bytes) -> Result<WriteOutcome, StoreError>;

    /// Replaces a record only if its revision is still `expected`. `ttl` `None` keeps it
    /// without time to live (a reservation).
    ///
    /// # Errors
    /// When the store could not be asked, or did not answer whether it wrote.
    async fn replace(
        &self,
        name: &str,
        value: Bytes,
        expected: i64,
        ttl: Option<Duration>,
    ) -> Result<WriteOutcome, StoreError>;

    /// Deletes a record only if its revision is still `expected`.
    ///
    /// # Errors
    /// When the store could not be asked.
    async fn delete(&self, name: &str, expected: i64) -> Result<WriteOutcome, StoreError>;

    /// Tells the store that we live, so that our records do not expire. `Ok(false)`: the
    /// session is gone (expired or revoked), and our records with it, or there never was
    /// one; the next `create` or `replace` with a `ttl` starts a new one.
    ///
    /// # Errors
    /// When the store could not be asked.
    async fn keep_alive(&self) -> Result<bool, StoreError>;

    /// Watches all records from `revision` (exclusive) on, until the receiver is dropped.
    /// The channel ends only when the receiver does. Must be called inside a tokio runtime.
    fn watch(&self, revision: i64) -> mpsc::Receiver<WatchEvent>;
}
