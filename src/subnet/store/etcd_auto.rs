//! etcd by whichever API holds the network config: v3 and v2 are two stores in one server,
//! and writing the config with one API while the nodes read the other is the most common
//! mistake in setting flannel up.

use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::etcd::{EtcdOptions, EtcdOptionsError};
use super::etcd_v2::EtcdV2Store;
use super::etcd_v3::EtcdStore;
use super::{Listing, Record, Store, StoreError, WatchEvent, WriteOutcome};
use crate::subnet::lease::LeaseForm;

/// How long the other API is asked, when it is only for a remark.
const SECOND_LOOK: Duration = Duration::from_secs(5);

/// Which API of etcd is spoken (`--etcd-api`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EtcdApi {
    /// The one that holds the network config; v3 where both do.
    #[default]
    Auto,
    /// v3, as flannel since v0.18.
    V3,
    /// v2, as flannel up to v0.17.
    V2,
}

impl FromStr for EtcdApi {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "v3" | "3" => Ok(Self::V3),
            "v2" | "2" => Ok(Self::V2),
            _ => Err("auto, v3 or v2".into()),
        }
    }
}

/// A lease store in etcd, by the API that was chosen or found.
#[derive(Debug)]
pub struct EtcdAutoStore {
    v3: EtcdStore,
    v2: EtcdV2Store,
    wanted: EtcdApi,
    found: OnceLock<EtcdApi>,
}

impl EtcdAutoStore {
    /// Checks the options; nothing is sent yet.
    ///
    /// # Errors
    /// When an option can't be meant, with what to do about it.
    pub fn new(options: EtcdOptions, wanted: EtcdApi) -> Result<Self, EtcdOptionsError> {
        Ok(Self {
            v3: EtcdStore::new(options.clone())?,
            v2: EtcdV2Store::new(options)?,
            wanted,
            found: OnceLock::new(),
        })
    }

    fn chosen(&self) -> &dyn Store {
        let api = match self.wanted {
            EtcdApi::Auto => self.found.get().copied().unwrap_or(EtcdApi::V3),
            wanted => wanted,
        };
        match api {
            EtcdApi::V2 => &self.v2,
            _ => &self.v3,
        }
    }

    /// The store to ask, found out where that is still open.
    async fn store(&self) -> Result<&dyn Store, StoreError> {
        if self.wanted == EtcdApi::Auto && self.found.get().is_none() {
            self.find().await?;
        }
        Ok(self.chosen())
    }

    /// Looks for the config in both, v3 first, and stays with the one that has it.
    async fn find(&self) -> Result<Option<Bytes>, StoreError> {
        let three = self.v3.config().await;
        match three {
            Ok(Some(config)) => {
                let _ = self.found.set(EtcdApi::V3);
                self.compare(&config).await;
                Ok(Some(config))
            }
            // What v3 refuses (a password, a certificate) is not what v2 should answer.
            Err(error) if !error.is_transient() => Err(error),
            Err(error) => {
                // A server of before v3 has nobody who could answer.
                let version = self.v2.server_version().await.unwrap_or_default();
                if version.starts_with("2.") {
                    self.in_v2().await
                } else {
                    Err(error)
                }
            }
            // A server without v2 says so by an error, which here is no news.
            Ok(None) => Ok(self.in_v2().await.unwrap_or(None)),
        }
    }

    async fn in_v2(&self) -> Result<Option<Bytes>, StoreError> {
        let config = self.v2.config().await?;
        if config.is_some() {
            let _ = self.found.set(EtcdApi::V2);
            tracing::info!(
                event = "etcd_api",
                "the network config lies in etcd's v2 store: API v2 is used, as by flannel up to \
                 v0.17; flannel since v0.18 speaks v3 and will not see these leases"
            );
        }
        Ok(config)
    }

    /// Both stores may hold a config: say so, since the nodes that read the other one are
    /// another cluster.
    async fn compare(&self, config: &Bytes) {
        let other = tokio::time::timeout(SECOND_LOOK, self.v2.config()).await;
        if let Ok(Ok(Some(other))) = other {
            let same = other == *config;
            tracing::warn!(
                event = "etcd_api",
                same,
                "there is a network config in etcd's v2 store too: v3 is used; nodes that speak \
                 v2 (flannel up to v0.17) are another cluster (--etcd-api v2 joins them)"
            );
        }
    }

    /// Why the wanted API has no config, if it lies in the other one.
    async fn elsewhere(&self) -> Option<&'static str> {
        let (other, text): (&dyn Store, _) = match self.wanted {
            EtcdApi::Auto => return None,
            EtcdApi::V3 => (
                &self.v2,
                "it lies in etcd's v2 store (was it written with ETCDCTL_API=2?): write it \
                 with ETCDCTL_API=3 or 'uvxlan config put', or use --etcd-api v2",
            ),
            EtcdApi::V2 => (
                &self.v3,
                "it lies in etcd's v3 store (was it written with ETCDCTL_API=3?): write it \
                 with ETCDCTL_API=2, or use --etcd-api v3",
            ),
        };
        let config = tokio::time::timeout(SECOND_LOOK, other.config()).await;
        matches!(config, Ok(Ok(Some(_)))).then_some(text)
    }
}

#[async_trait]
impl Store for EtcdAutoStore {
    fn describe(&self) -> String {
        match (self.wanted, self.found.get()) {
            (EtcdApi::Auto, None) => self.v3.describe().replacen("etcd v3", "etcd (v3, v2)", 1),
            _ => self.chosen().describe(),
        }
    }

    fn lease_form(&self) -> LeaseForm {
        self.chosen().lease_form()
    }

    async fn config(&self) -> Result<Option<Bytes>, StoreError> {
        if self.wanted == EtcdApi::Auto && self.found.get().is_none() {
            return self.find().await;
        }
        self.chosen().config().await
    }

    async fn why_no_config(&self) -> Option<&'static str> {
        self.elsewhere().await
    }

    async fn put_config(&self, value: Bytes) -> Result<(), StoreError> {
        self.store().await?.put_config(value).await
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        self.store().await?.list().await
    }

    async fn get(&self, name: &str) -> Result<Option<Record>, StoreError> {
        self.store().await?.get(name).await
    }

    async fn create(
        &self,
        name: &str,
        value: Bytes,
        ttl: Duration,
    ) -> Result<WriteOutcome, StoreError> {
        self.store().await?.create(name, value, ttl).await
    }

    async fn reserve(&self, name: &str, value: Bytes) -> Result<WriteOutcome, StoreError> {
        self.store().await?.reserve(name, value).await
    }

    async fn replace(
        &self,
        name: &str,
        value: Bytes,
        expected: i64,
        ttl: Option<Duration>,
    ) -> Result<WriteOutcome, StoreError> {
        self.store()
            .await?
            .replace(name, value, expected, ttl)
            .await
    }

    async fn delete(&self, name: &str, expected: i64) -> Result<WriteOutcome, StoreError> {
        self.store().await?.delete(name, expected).await
    }

    async fn keep_alive(&self) -> Result<bool, StoreError> {
        self.chosen().keep_alive().await
    }

    fn watch(&self, revision: i64) -> mpsc::Receiver<WatchEvent> {
        self.chosen().watch(revision)
    }
}
