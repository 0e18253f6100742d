//! What a start asks its store: the network config and a lease, with patience.

use rand::RngExt;
use rand::rngs::StdRng;

use super::identity::{self, Traces};
use crate::daemon::backoff::Backoff;
use crate::daemon::failure::Failure;
use crate::daemon::notify;
use crate::daemon::options::RunOptions;
use crate::daemon::state::state_file;
use crate::daemon::state::subnet_env;
use crate::dataplane::inbound::header_checks::Vtep;
use crate::host::interface::ExternalInterface;
use crate::subnet::config::{ConfigError, NetworkConfig};
use crate::subnet::lease::{LeaseAttrs, NodeId, VxlanData};
use crate::subnet::manager::{self, AcquireError, AcquireRequest, Acquired};
use crate::subnet::store::{Store, StoreError};
use crate::subnet::validate::{self, Context};
use crate::wire::MacAddr;

/// The network config, waited for as flannel does; only a config that cannot be used ends
/// the wait.
pub(crate) async fn network_config(
    options: &RunOptions,
    store: &dyn Store,
) -> Result<(NetworkConfig, String), Failure> {
    let mut backoff = Backoff::default();
    loop {
        match store.config().await {
            Ok(Some(text)) => {
                let config = parse(options, &text).map_err(|source| Failure::Config {
                    place: store.describe(),
                    source,
                })?;
                tracing::info!(
                    event = "config", network = %config.network, subnet_len = config.subnet_len,
                    vni = %config.backend.vni, port = config.backend.port,
                    "Found network config - Backend type: vxlan"
                );
                for key in config.without_effect() {
                    tracing::warn!(event = "config", key, "accepted, has no effect yet");
                }
                return Ok((config, String::from_utf8_lossy(&text).into_owned()));
            }
            Ok(None) => {
                let elsewhere = match backoff.should_log() {
                    true => store.why_no_config().await,
                    false => None,
                };
                let hint = elsewhere.unwrap_or("was it written under the prefix used here?");
                backoff
                    .wait(|| {
                        notify::status("waiting for the network config");
                        tracing::warn!(
                            event = "no_config",
                            store = store.describe(),
                            hint,
                            "Couldn't fetch network config: the key does not exist; waiting for it"
                        );
                    })
                    .await;
            }
            Err(error) => store_error(options, &mut backoff, error).await?,
        }
    }
}

pub(crate) fn parse(options: &RunOptions, text: &[u8]) -> Result<NetworkConfig, ConfigError> {
    NetworkConfig::parse(text, options.backend_default.as_deref())
}

/// Waits, or ends where waiting cannot help or was not wanted.
async fn store_error(
    options: &RunOptions,
    backoff: &mut Backoff,
    error: StoreError,
) -> Result<(), Failure> {
    // An end would be answered by a new start, and a login each time.
    let refused_login = error.is_refused_login() && !options.fail_fast;
    if !error.transient && !refused_login {
        return Err(Failure::Store(error));
    }
    if options.fail_fast {
        return Err(Failure::Unreachable(error));
    }
    backoff
        .wait(|| {
            let what = match refused_login {
                true => "the datastore refuses our login; trying again, at most twice a minute",
                false => "the datastore does not answer; trying again",
            };
            notify::status("waiting for the datastore");
            tracing::error!(event = "store_unreachable", %error, "{what}");
        })
        .await;
    Ok(())
}

/// Finds out who we are, and leases our subnet.
pub(crate) async fn lease(
    options: &RunOptions,
    store: &dyn Store,
    config: &NetworkConfig,
    external: &ExternalInterface,
    known: Traces<'_>,
    instance: NodeId,
) -> Result<(Vtep, Acquired), Failure> {
    let context = Context {
        network: config.network,
        vni: config.backend.vni,
    };
    let subnet_file = subnet_env::read(&options.subnet_file).unwrap_or_else(|error| {
        let path = options.subnet_file.display();
        tracing::warn!(event = "subnet_file", %error, "cannot read the subnet file {path}");
        Default::default()
    });

    let mut backoff = Backoff::default();
    loop {
        let own_lease = match store.list().await {
            Ok(listing) => listing.records.iter().find_map(|record| {
                let peer = validate::check(&record.name, &record.value, &context).ok()?;
                (peer.public_ip == external.public_ip).then_some(peer)
            }),
            Err(error) => {
                store_error(options, &mut backoff, error).await?;
                continue;
            }
        };
        let traces = Traces {
            own_lease: own_lease.as_ref(),
            subnet_file: subnet_file.subnet,
            ..known.clone()
        };
        let mut rng: StdRng = rand::make_rng();
        let (mac, origin) = identity::choose_mac(&traces, config.backend.vni, rng.random());
        let request = request(options, config, external, &traces, mac, instance)?;
        match manager::acquire(store, config, &request, &mut rng).await {
            Ok(acquired) => {
                tracing::info!(
                    event = "lease", subnet = %acquired.lease.subnet, public_ip = %external.public_ip,
                    vtep_mac = %mac, mac_from = ?origin, reserved = acquired.lease.reserved,
                    "Allocated lease"
                );
                return Ok((
                    Vtep {
                        vni: config.backend.vni,
                        mac,
                    },
                    acquired,
                ));
            }
            Err(AcquireError::Store(error)) => store_error(options, &mut backoff, error).await?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Which installation this is, in this boot.
pub(crate) fn instance_id(options: &RunOptions) -> NodeId {
    let secret = state_file::secret(&options.state_dir).unwrap_or_else(|(made, error)| {
        let directory = options.state_dir.display();
        tracing::warn!(event = "state_file", %error, "this node's secret cannot be kept in {directory}");
        made
    });
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    NodeId::of_instance(&secret, &boot)
}

pub(crate) fn request(
    options: &RunOptions,
    config: &NetworkConfig,
    external: &ExternalInterface,
    traces: &Traces<'_>,
    mac: MacAddr,
    instance: NodeId,
) -> Result<AcquireRequest, Failure> {
    let data = VxlanData {
        vni: Some(config.backend.vni),
        vtep_mac: mac,
    };
    let attrs = LeaseAttrs::vxlan(external.public_ip, data)
        .map_err(AcquireError::Encode)?
        .with_instance(instance);
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let attrs = match NodeId::of_machine(&machine) {
        Some(node) => attrs.with_node(node),
        None => attrs,
    };
    let attrs = match options.probe_interval.is_zero() {
        false => attrs.with_probe(),
        true => attrs,
    };
    let in_use = identity::subnet_in_use(traces, instance).filter(|_| !options.allow_renumber);
    Ok(AcquireRequest {
        public_ip: external.public_ip,
        attrs,
        in_use,
        device_mac: traces.kernel_device,
        mixed_lengths: options.mixed_lengths,
        previous: identity::previous_subnet(traces, config.network, external.public_ip),
        ttl: options.lease_ttl,
    })
}
