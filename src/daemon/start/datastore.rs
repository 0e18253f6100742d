//! What a start reads from the datastore and writes to it. It retries until that succeeds, or
//! retrying cannot help.

use rand::rngs::StdRng;

use super::identity::KnownIdentity;
use super::node::Node;
use crate::daemon::backoff::Backoff;
use crate::daemon::failure::Failure;
use crate::daemon::notify::Notifier;
use crate::daemon::options::RunOptions;
use crate::daemon::state::offline_cache::OfflineCache;
use crate::daemon::state::subnet_env;
use crate::dataplane::inbound::header_checks::LocalVtep;
use crate::subnet::config::{ConfigError, NetworkConfig};
use crate::subnet::manager::{self, AcquireError, Acquired};
use crate::subnet::store::{Store, StoreError, StoreErrorKind};
use crate::subnet::validate::{self, Context};

/// The network config, as text and parsed.
#[derive(Debug, Clone)]
pub(super) struct Network {
    pub(super) config: NetworkConfig,
    pub(super) text: String,
}

impl Network {
    pub(super) fn parse(options: &RunOptions, text: &[u8]) -> Result<Self, ConfigError> {
        Ok(Self {
            config: NetworkConfig::parse(text, options.backend_default.as_deref())?,
            text: String::from_utf8_lossy(text).into_owned(),
        })
    }
}

/// What the network's records are validated against.
pub(super) const fn context(config: &NetworkConfig) -> Context {
    Context {
        network: config.network,
        vni: config.backend.vni,
    }
}

/// Our lease and the peers.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) vtep: LocalVtep,
    pub(super) acquired: Acquired,
    /// The cache, if the lease is from it.
    pub(super) cache: Option<OfflineCache>,
}

/// The datastore of a daemon with these options.
pub(super) struct Datastore<'a> {
    pub(super) options: &'a RunOptions,
    pub(super) store: &'a dyn Store,
    pub(super) notifier: &'a Notifier,
}

impl Datastore<'_> {
    /// The network config. Waits until there is one, as flannel does.
    pub(super) async fn config(&self) -> Result<Network, Failure> {
        let mut backoff = Backoff::default();
        loop {
            match self.store.config().await {
                Ok(Some(text)) => {
                    let network =
                        Network::parse(self.options, &text).map_err(|source| Failure::Config {
                            place: self.store.describe(),
                            source,
                        })?;
                    let config = &network.config;
                    tracing::info!(
                        event = "config", network = %config.network,
                        subnet_len = config.subnet_len, vni = %config.backend.vni,
                        port = config.backend.port,
                        "Found network config - Backend type: vxlan"
                    );
                    for key in config.without_effect() {
                        tracing::warn!(event = "config", key, "accepted, has no effect yet");
                    }
                    return Ok(network);
                }
                Ok(None) => self.no_config(&mut backoff).await,
                Err(error) => self.failed(&mut backoff, error).await?,
            }
        }
    }

    async fn no_config(&self, backoff: &mut Backoff) {
        let reason = match backoff.should_log() {
            true => self.store.why_no_config().await,
            false => None,
        };
        let hint = reason.unwrap_or("was it written under the prefix used here?");
        backoff
            .wait(self.notifier, || {
                self.notifier.status("waiting for the network config");
                tracing::warn!(
                    event = "no_config",
                    store = self.store.describe(),
                    hint,
                    "Couldn't fetch network config: the key does not exist; waiting for it"
                );
            })
            .await;
    }

    /// Waits before the next attempt, or returns the failure if there is to be none.
    async fn failed(&self, backoff: &mut Backoff, error: StoreError) -> Result<(), Failure> {
        // An exit would be followed by a restart, and each start is a login.
        let refused_login = error.kind == StoreErrorKind::LoginRefused && !self.options.fail_fast;
        if !error.is_transient() && !refused_login {
            return Err(Failure::Store(error));
        }
        if self.options.fail_fast {
            return Err(Failure::Unreachable(error));
        }
        backoff
            .wait(self.notifier, || {
                let what = match refused_login {
                    true => "the datastore refuses our login; trying again, at most twice a minute",
                    false => "the datastore does not answer; trying again",
                };
                self.notifier.status("waiting for the datastore");
                tracing::error!(event = "store_unreachable", %error, "{what}");
            })
            .await;
        Ok(())
    }

    /// Leases a subnet: the one that this node had, if it can still be had.
    pub(super) async fn lease(&self, node: &Node<'_>) -> Result<Leased, Failure> {
        let subnet_file = subnet_env::read(&self.options.subnet_file).unwrap_or_else(|error| {
            let path = self.options.subnet_file.display();
            tracing::warn!(event = "subnet_file", %error, "cannot read the subnet file {path}");
            Default::default()
        });
        let context = context(node.config);
        let mut backoff = Backoff::default();
        loop {
            let own_lease = match self.store.list().await {
                Ok(listing) => listing.records.iter().find_map(|record| {
                    let peer = validate::check(&record.name, &record.value, &context).ok()?;
                    (peer.public_ip == node.external.public_ip).then_some(peer)
                }),
                Err(error) => {
                    self.failed(&mut backoff, error).await?;
                    continue;
                }
            };
            let known = KnownIdentity {
                own_lease: own_lease.as_ref(),
                subnet_file: subnet_file.subnet,
                ..node.known.clone()
            };
            let (mac, origin) = node.choose_mac(&known);
            let request = node.request(&known, mac)?;
            let mut rng: StdRng = rand::make_rng();
            match manager::acquire(self.store, node.config, &request, &mut rng).await {
                Ok(acquired) => {
                    tracing::info!(
                        event = "lease", subnet = %acquired.lease.subnet,
                        public_ip = %node.external.public_ip, vtep_mac = %mac, mac_from = ?origin,
                        reserved = acquired.lease.reserved,
                        "Allocated lease"
                    );
                    return Ok(Leased {
                        vtep: node.vtep(mac),
                        acquired,
                        cache: None,
                    });
                }
                Err(AcquireError::Store(error)) => self.failed(&mut backoff, error).await?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}
