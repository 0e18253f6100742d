//! One record as it was, to know a store again after a break.

use std::sync::{MutexGuard, PoisonError};

use etcd_client::{GetOptions, KeyValue, SortOrder, SortTarget};

use super::super::StoreError;
use super::Inner;

/// A key at one moment of one store's history: the etcd lease's number is random.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Anchor {
    pub(super) key: Vec<u8>,
    created: i64,
    pub(super) revision: i64,
    lease: i64,
}

impl Anchor {
    pub(super) fn of(kv: &KeyValue) -> Self {
        Self {
            key: kv.key().to_vec(),
            created: kv.create_revision(),
            revision: kv.mod_revision(),
            lease: kv.lease(),
        }
    }
}

impl Inner {
    pub(super) fn own(&self) -> MutexGuard<'_, Option<String>> {
        // No panic can leave it half changed.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is the key of our record.
    pub(super) fn is_own(&self, key: &[u8]) -> bool {
        self.own().as_ref().is_some_and(|own| own.as_bytes() == key)
    }

    /// Our record, or the one that was left alone longest.
    pub(super) async fn anchor(&self) -> Result<Option<Anchor>, StoreError> {
        let own = self.own().clone();
        if let Some(own) = own
            && let Some(found) = self.read_anchor(own.as_bytes()).await?
        {
            return Ok(Some(found));
        }
        let options = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Mod, SortOrder::Ascend)
            .with_limit(1)
            .with_keys_only();
        self.first_anchor(self.records.as_bytes(), options).await
    }

    pub(super) async fn read_anchor(&self, key: &[u8]) -> Result<Option<Anchor>, StoreError> {
        let options = GetOptions::new().with_keys_only();
        self.first_anchor(key, options).await
    }

    async fn first_anchor(
        &self,
        key: &[u8],
        options: GetOptions,
    ) -> Result<Option<Anchor>, StoreError> {
        let (key, options) = (&key, &options);
        let operation = "looking whether etcd is the one that was watched";
        let found = self
            .connection
            .call(operation, &self.records, |client, _| async move {
                let answer = client.kv_client().get(*key, Some(options.clone())).await?;
                Ok(answer.kvs().first().map(Anchor::of))
            })
            .await?;
        Ok(found)
    }
}
