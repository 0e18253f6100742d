//! How the commands that look into a store find it: the daemon's flags and environment.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::cli::inspect::running;
use crate::daemon::options::{DEFAULT_ENDPOINTS, DEFAULT_PREFIX, StoreChoice};
use crate::subnet::config::ConfigError;
use crate::subnet::store::dir::DirStore;
use crate::subnet::store::etcd::{EtcdOptions, EtcdOptionsError};
use crate::subnet::store::etcd_auto::{EtcdApi, EtcdAutoStore};
use crate::subnet::store::{Store, StoreError};

/// Longest time for one operation: a person waits.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Which store. Where none of these is given, by flag or environment, it is that of the
/// daemon that runs here; else etcd at flannel's defaults.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Datastore (without any of these: as the daemon that runs here)")]
pub struct StoreArgs {
    /// etcd, or dir:PATH
    #[arg(long, env = "UVXLAN_STORE", value_name = "STORE")]
    store: Option<String>,
    /// URLs of etcd, separated by commas
    #[arg(
        long,
        env = "FLANNELD_ETCD_ENDPOINTS",
        value_delimiter = ',',
        value_name = "URLS"
    )]
    etcd_endpoints: Vec<String>,
    /// Key prefix of the network
    #[arg(long, env = "FLANNELD_ETCD_PREFIX", value_name = "PREFIX")]
    etcd_prefix: Option<String>,
    /// API of etcd: auto (the one that holds the network config), v3, v2
    #[arg(long, env = "UVXLAN_ETCD_API", value_name = "API")]
    etcd_api: Option<EtcdApi>,
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

/// A store, before anything is sent to it.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// A directory.
    Directory(PathBuf),
    /// etcd.
    Etcd(EtcdOptions, EtcdApi),
}

impl Place {
    /// Opens the store; nothing is sent yet.
    pub(crate) fn open(self) -> Result<Arc<dyn Store>, EtcdOptionsError> {
        Ok(match self {
            Self::Directory(path) => Arc::new(DirStore::new(path)),
            Self::Etcd(options, api) => Arc::new(EtcdAutoStore::new(options, api)?),
        })
    }

    /// How etcd is reached; `None` for a directory.
    pub(crate) fn etcd(&self) -> Option<EtcdOptions> {
        match self {
            Self::Directory(_) => None,
            Self::Etcd(options, _) => Some(options.clone()),
        }
    }
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
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Store(_) => crate::cli::USAGE,
            Self::Options(_) | Self::NoConfig(_) | Self::Config { .. } => crate::cli::CONFIG,
            Self::Unreachable(_) => crate::cli::UNAVAILABLE,
            _ => crate::cli::FAILURE,
        }
    }
}

impl StoreArgs {
    /// Opens the store; nothing is sent yet.
    ///
    /// # Errors
    /// When the options cannot be meant.
    pub fn open(&self) -> Result<Arc<dyn Store>, CommandError> {
        Ok(self.place()?.open()?)
    }

    /// Where the store is.
    pub(crate) fn place(&self) -> Result<Place, CommandError> {
        if !self.says_something()
            && let Some(daemon) = running::options()
        {
            return Ok(match &daemon.store {
                StoreChoice::Directory(path) => Place::Directory(path.clone()),
                StoreChoice::Etcd => {
                    let options = EtcdOptions {
                        timeout: TIMEOUT,
                        ..daemon.etcd()
                    };
                    Place::Etcd(options, daemon.etcd_api)
                }
            });
        }
        match self
            .store
            .as_deref()
            .map(|store| (store, store.split_once(':')))
        {
            None | Some(("etcd", _)) => Ok(Place::Etcd(
                self.etcd_options(),
                self.etcd_api.unwrap_or(EtcdApi::Auto),
            )),
            Some((_, Some(("dir", path)))) if !path.is_empty() => Ok(Place::Directory(path.into())),
            Some((other, _)) => Err(CommandError::Store(other.to_owned())),
        }
    }

    fn says_something(&self) -> bool {
        let Self {
            store,
            etcd_endpoints,
            etcd_prefix,
            etcd_api,
            etcd_cafile,
            etcd_certfile,
            etcd_keyfile,
            etcd_username,
            etcd_password,
            insecure_etcd,
        } = self;
        store.is_some()
            || !etcd_endpoints.is_empty()
            || etcd_prefix.is_some()
            || etcd_api.is_some()
            || etcd_cafile.is_some()
            || etcd_certfile.is_some()
            || etcd_keyfile.is_some()
            || etcd_username.is_some()
            || etcd_password.is_some()
            || *insecure_etcd
    }

    fn etcd_options(&self) -> EtcdOptions {
        let mut endpoints = self.etcd_endpoints.clone();
        if endpoints.is_empty() {
            endpoints = DEFAULT_ENDPOINTS.split(',').map(str::to_owned).collect();
        }
        EtcdOptions {
            endpoints,
            prefix: self
                .etcd_prefix
                .clone()
                .unwrap_or_else(|| DEFAULT_PREFIX.into()),
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
pub(crate) fn finish(
    name: &str,
    command: impl Future<Output = Result<String, CommandError>>,
) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::Runtime);
    match runtime.and_then(|runtime| runtime.block_on(command)) {
        Ok(answer) => {
            crate::cli::print_out(&answer);
            ExitCode::from(crate::cli::OK)
        }
        Err(error) => {
            crate::cli::print_err(&format!("{name}: {error}\n"));
            ExitCode::from(error.exit_status())
        }
    }
}
