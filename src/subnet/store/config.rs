//! Which datastore is used, and how it is reached: one value for the daemon, the commands and
//! the offline cache.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Store;
use super::dir::DirStore;
use super::etcd::{EtcdOptions, EtcdOptionsError};
use super::etcd_auto::{EtcdApi, EtcdAutoStore};

/// The datastore flags.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreConfig {
    /// Leases are files in this directory, which all nodes share; `None`: they are in etcd.
    pub directory: Option<PathBuf>,
    /// How etcd is reached.
    pub etcd: EtcdOptions,
    /// Which API of etcd is used.
    pub etcd_api: EtcdApi,
}

impl StoreConfig {
    /// Opens the store; nothing is sent yet.
    ///
    /// # Errors
    /// When the etcd options cannot work, with the remedy.
    pub(crate) fn open(&self) -> Result<Arc<dyn Store>, EtcdOptionsError> {
        Ok(match &self.directory {
            Some(path) => Arc::new(DirStore::new(path)),
            None => Arc::new(EtcdAutoStore::new(self.etcd.clone(), self.etcd_api)?),
        })
    }

    /// Which store this is, without how it is reached.
    #[must_use]
    pub(crate) fn identity(&self) -> StoreIdentity {
        match &self.directory {
            Some(path) => StoreIdentity::Directory(path.clone()),
            None => StoreIdentity::Etcd {
                prefix: self.etcd.prefix.trim_end_matches('/').to_owned(),
                endpoints: self.etcd.endpoints.clone(),
            },
        }
    }

    /// IPv4 addresses of the store's servers, where endpoints name addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        let endpoints = match self.directory {
            Some(_) => &[],
            None => self.etcd.endpoints.as_slice(),
        };
        endpoints.iter().filter_map(|url| {
            let authority = url.split("://").last().unwrap_or_default();
            let host = authority.split(['/', ':']).next().unwrap_or_default();
            host.parse().ok()
        })
    }

    /// Resolves relative paths against `base`.
    pub(crate) fn make_absolute(&mut self, base: &Path) {
        let Self {
            directory, etcd, ..
        } = self;
        let files = [
            directory,
            &mut etcd.ca_file,
            &mut etcd.cert_file,
            &mut etcd.key_file,
        ];
        for path in files.into_iter().flatten() {
            *path = base.join(&*path);
        }
    }
}

/// Which store: records of one mean nothing to a daemon that uses another. Kept in files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreIdentity {
    /// A prefix in etcd.
    Etcd {
        /// The prefix.
        prefix: String,
        /// The endpoints, which distinguish clusters.
        endpoints: Vec<String>,
    },
    /// A directory.
    Directory(PathBuf),
}

impl StoreIdentity {
    /// Whether both are the same store. Members of a cluster are replaced one by one, so one
    /// endpoint in common is enough.
    #[must_use]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Etcd { prefix, endpoints },
                Self::Etcd {
                    prefix: other_prefix,
                    endpoints: others,
                },
            ) => prefix == other_prefix && endpoints.iter().any(|url| others.contains(url)),
            (Self::Directory(path), Self::Directory(other)) => path == other,
            _ => false,
        }
    }
}
