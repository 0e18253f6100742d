//! Where a start takes network config, lease and peers from: the datastore, or the offline cache
//! if the datastore does not answer in time.
//!
//! Packets are forwarded by this process: if it is killed and restarted while the datastore is
//! down, it must forward as before. The datastore's first complete list, which the guard against
//! mass deletion may hold back, then corrects what the cache said.

use std::time::Duration;

use super::datastore::{Datastore, Leased, Network};
use super::identity::MacOrigin;
use super::inputs::Inputs;
use super::node::Node;
use crate::daemon::failure::Failure;
use crate::daemon::state::offline_cache::{self, OfflineCache};
use crate::daemon::state::state_file::State;
use crate::host::interface::ExternalInterface;
use crate::subnet::allocate::compatible;
use crate::subnet::config::NetworkConfig;
use crate::subnet::lease::Lease;
use crate::subnet::manager::{AcquireError, Acquired};

/// How long a start waits for the datastore if it has a cache.
const DATASTORE_TIMEOUT: Duration = Duration::from_secs(5);

/// The datastore, with the offline cache as its fallback.
pub(super) struct Source<'a> {
    datastore: Datastore<'a>,
    fallback: Option<CachedNetwork>,
    /// The config is the cache's, so the lease must be, too.
    offline: bool,
}

impl<'a> Source<'a> {
    pub(super) fn new(inputs: &Inputs<'a>, state: Option<&State>) -> Self {
        let options = inputs.options;
        let fallback = offline_cache::load(options, state).and_then(|cache| {
            let network = Network::parse(options, cache.config.as_bytes()).ok()?;
            Some(CachedNetwork { cache, network })
        });
        Self {
            datastore: Datastore {
                options,
                store: inputs.store.as_ref(),
                notifier: inputs.notifier,
            },
            fallback,
            offline: false,
        }
    }

    /// The datastore's network config; `None` if it does not answer and there is a cache.
    pub(super) async fn datastore_config(&self) -> Result<Option<Network>, Failure> {
        let config = self.datastore.config();
        match self.fallback {
            Some(_) => in_time(config).await,
            None => config.await.map(Some),
        }
    }

    /// The network config of a host with this interface: the datastore's, which is `found`, or
    /// the cache's. A cache that does not fit the host is dropped.
    pub(super) async fn config(
        &mut self,
        found: Option<Network>,
        external: &ExternalInterface,
    ) -> Result<Network, Failure> {
        self.fallback.take_if(|cached| {
            let network = found.as_ref().unwrap_or(&cached.network);
            !cached.fits(&network.config, external)
        });
        self.offline = found.is_none() && self.fallback.is_some();
        match (found, &self.fallback) {
            (Some(network), _) => Ok(network),
            (None, Some(cached)) => Ok(cached.network.clone()),
            (None, None) => self.datastore.config().await,
        }
    }

    /// The lease of this node, and the peers.
    pub(super) async fn lease(self, node: &Node<'_>) -> Result<Leased, Failure> {
        let Some(cached) = self.fallback else {
            return self.datastore.lease(node).await;
        };
        if !self.offline
            && let Some(leased) = in_time(self.datastore.lease(node)).await?
        {
            return Ok(leased);
        }
        cached.lease(node)
    }
}

/// Gives the datastore the time that it has if there is a cache; `None` if it does not answer,
/// or refuses us.
async fn in_time<T>(
    request: impl Future<Output = Result<T, Failure>>,
) -> Result<Option<T>, Failure> {
    match tokio::time::timeout(DATASTORE_TIMEOUT, request).await {
        // A changed password or an expired certificate is no reason to stop forwarding.
        Ok(Err(Failure::Store(error))) => {
            tracing::error!(event = "store_refuses", %error, "continuing from the offline cache");
            Ok(None)
        }
        Ok(done) => done.map(Some),
        Err(_) => Ok(None),
    }
}

/// The offline cache and its network config.
struct CachedNetwork {
    cache: OfflineCache,
    network: Network,
}

impl CachedNetwork {
    fn fits(&self, config: &NetworkConfig, external: &ExternalInterface) -> bool {
        self.cache.public_ip == external.public_ip
            && config.network.contains(&self.cache.subnet)
            && compatible(config, self.cache.subnet)
    }

    fn lease(self, node: &Node<'_>) -> Result<Leased, Failure> {
        let cache = self.cache;
        let (mac, origin) = node.choose_mac(&node.known);
        let attrs = node.attrs(mac)?;
        let value = attrs.encode_as(cache.form());
        let value = value.map_err(AcquireError::Encode)?.into();
        tracing::warn!(
            event = "offline_start", subnet = %cache.subnet, peers = cache.peers(),
            age_seconds = cache.age().as_secs(), vtep_mac = %mac, mac_from = ?origin,
            "the datastore does not answer: starting with config, subnet and peers of the offline \
             cache, and following the datastore as soon as it answers"
        );
        if origin == MacOrigin::New {
            tracing::warn!(
                event = "offline_start",
                "our MAC is new: peers use the old one until the datastore is back"
            );
        }
        let lease = Lease {
            subnet: cache.subnet,
            attrs,
            revision: 0,
            reserved: cache.reserved,
        };
        let acquired = Acquired {
            lease,
            value,
            ttl: node.options.lease_ttl,
            listing: cache.listing(),
        };
        Ok(Leased {
            vtep: node.vtep(mac),
            acquired,
            cache: Some(cache),
        })
    }
}
