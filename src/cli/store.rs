//! How the commands that look into a store find it: the daemon's flags and environment.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::daemon::options::{DEFAULT_ENDPOINTS, DEFAULT_PREFIX};
use crate::subnet::config::ConfigError;
use crate::subnet::store::dir::DirStore;
use crate::subnet::store::etcd::{EtcdOptions, EtcdOptionsError};
use crate::subnet::store::etcd_auto::{EtcdApi, EtcdAutoStore};
use crate::subnet::store::{Store, StoreError};

/// Longest time for one operation: a person waits.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Which store.
#[derive(clap::Args, Debug, Clone)]
pub struct StoreArgs {
    /// etcd, or dir:PATH
    #[arg(
        long,
        env = "UVXLAN_STORE",
        default_value = "etcd",
        value_name = "STORE"
    )]
    store: String,
    /// URLs of etcd, separated by commas
    #[arg(long, env = "FLANNELD_ETCD_ENDPOINTS", value_delimiter = ',', default_value = DEFAULT_ENDPOINTS, value_name = "URLS")]
    etcd_endpoints: Vec<String>,
    /// Key prefix of the network
    #[arg(long, env = "FLANNELD_ETCD_PREFIX", default_value = DEFAULT_PREFIX, value_name = "PREFIX")]
    etcd_prefix: String,
    /// API of etcd: auto (the one that holds the network config), v3, v2
    #[arg(
        long,
        env = "UVXLAN_ETCD_API",
        default_value = "auto",
        value_name = "API"
    )]
    etcd_api: EtcdApi,
    /// CA certificates (PEM)
    #[arg(long, env = "FLANNELD_ETCD_CAFILE", value_name = "FILE")]
    etcd_cafile: Option<PathBuf>,
    /// Client certificate (PEM)
    #[arg(long, env = "FLANNELD_ETCD_CERTFILE", value_name = "FILE")]
    etcd_certfile: Option<PathBuf>,
    /// Key of the client certificate (PEM)
    #[arg(long, env = "FLANNELD_ETCD_KEYFILE", value_name = "FILE")]
    etcd_keyfile: Option<PathBuf>,
    /// etcd user
    #[arg(long, env = "FLANNELD_ETCD_USERNAME", value_name = "NAME")]
    etcd_username: Option<String>,
    /// Password of the etcd user; better given by the environment
    #[arg(
        long,
        env = "FLANNELD_ETCD_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD"
    )]
    etcd_password: Option<String>,
    /// Send the password over a network without TLS
    #[arg(long, env = "UVXLAN_INSECURE_ETCD")]
    insecure_etcd: bool,
}

/// Why a command failed. Each message names the remedy.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Options of etcd that cannot work.
    #[error(transparent)]
    Options(#[from] EtcdOptionsError),
    /// `--store` is neither.
    #[error("--store={0:?} is neither etcd nor dir:PATH")]
    Store(String),
    /// The store failed.
    #[error("{0}; is it running, and do --etcd-endpoints (or --store) name it?")]
    Unreachable(StoreError),
    /// The store refused.
    #[error(transparent)]
    Refused(StoreError),
    /// There is no config.
    #[error("{0} holds no network config; write one with 'uvxlan config put FILE'")]
    NoConfig(String),
    /// The config cannot be used.
    #[error("network config in {place}: {source}")]
    Config {
        /// Store or file.
        place: String,
        /// What is wrong.
        source: ConfigError,
    },
    /// Something else, in words.
    #[error("{0}")]
    Other(String),
    /// A file.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What came back.
        source: std::io::Error,
    },
    /// The runtime.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        if error.transient {
            Self::Unreachable(error)
        } else {
            Self::Refused(error)
        }
    }
}

impl CommandError {
    pub(super) fn exit_status(&self) -> u8 {
        match self {
            Self::Store(_) => super::USAGE,
            Self::Options(_) | Self::NoConfig(_) | Self::Config { .. } => super::CONFIG,
            Self::Unreachable(_) => super::UNAVAILABLE,
            _ => super::FAILURE,
        }
    }
}

impl StoreArgs {
    /// Opens the store; nothing is sent yet.
    ///
    /// # Errors
    /// When the options cannot be meant.
    pub fn open(&self) -> Result<Arc<dyn Store>, CommandError> {
        match self.store.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Arc::new(DirStore::new(path))),
            None if self.store == "etcd" => {
                let store = EtcdAutoStore::new(self.etcd_options(), self.etcd_api)?;
                Ok(Arc::new(store))
            }
            _ => Err(CommandError::Store(self.store.clone())),
        }
    }

    /// How etcd is reached; `None` where the store is another.
    pub(super) fn etcd(&self) -> Option<EtcdOptions> {
        (self.store == "etcd").then(|| self.etcd_options())
    }

    fn etcd_options(&self) -> EtcdOptions {
        EtcdOptions {
            endpoints: self.etcd_endpoints.clone(),
            prefix: self.etcd_prefix.clone(),
            ca_file: self.etcd_cafile.clone(),
            cert_file: self.etcd_certfile.clone(),
            key_file: self.etcd_keyfile.clone(),
            username: self.etcd_username.clone(),
            password: self.etcd_password.clone(),
            insecure_password: self.insecure_etcd,
            timeout: TIMEOUT,
        }
    }
}

/// Runs a command, and prints its answer or its error.
pub(super) fn finish(
    name: &str,
    command: impl Future<Output = Result<String, CommandError>>,
) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::Runtime);
    match runtime.and_then(|runtime| runtime.block_on(command)) {
        Ok(answer) => {
            super::print_out(&answer);
            ExitCode::from(super::OK)
        }
        Err(error) => {
            super::print_err(&format!("{name}: {error}\n"));
            ExitCode::from(error.exit_status())
        }
    }
}
