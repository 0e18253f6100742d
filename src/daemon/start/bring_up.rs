//! Fourth phase of a start: device, packet loop, peers and their routes.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use ipnet::Ipv4Net;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::datastore::{Leased, context};
use super::discover::{Discovered, receive_address};
use super::inputs::Inputs;
use crate::daemon::failure::Failure;
use crate::daemon::options::{ReceiveOn, RunOptions};
use crate::daemon::probes::Incoming;
use crate::daemon::serve::overlay::{Overlay, Settings};
use crate::daemon::state::offline_cache::OfflineCache;
use crate::dataplane::inbound::header_checks::LocalVtep;
use crate::dataplane::ingress_policy::IngressPolicy;
use crate::dataplane::{DeviceGone, Options};
use crate::host::interface::ExternalInterface;
use crate::host::link;
use crate::host::netlink::Netlink;
use crate::route::publish::Routes;
use crate::route::table::RouteTable;
use crate::subnet::lease::Lease;
use crate::subnet::manager::{self, PeerSet};

/// The overlay with the peers of this moment, and the manager that keeps it up to date.
pub(super) struct RunningOverlay {
    pub(super) vtep: LocalVtep,
    pub(super) lease: Lease,
    /// The cache, if the lease is from it.
    pub(super) cache: Option<OfflineCache>,
    pub(super) overlay: Overlay,
    pub(super) device_gone: mpsc::UnboundedReceiver<DeviceGone>,
    pub(super) incoming_probes: Option<Incoming>,
    pub(super) manager: manager::Running,
    pub(super) manager_stop: CancellationToken,
}

/// Takes over from flannel's kernel device, opens the overlay, and waits for the first complete
/// set of peers.
pub(super) async fn bring_up(
    inputs: &Inputs<'_>,
    host: &Discovered,
    leased: Leased,
) -> Result<RunningOverlay, Failure> {
    let Inputs {
        options, netlink, ..
    } = inputs;
    if let Some(mac) = link::take_over_kernel_vxlan(netlink, &host.device).await? {
        tracing::warn!(
            event = "take_over", device = host.device, %mac,
            "took over from a kernel vxlan device: deleted it and kept its MAC"
        );
    }
    let Leased {
        vtep,
        acquired,
        cache,
    } = leased;
    let lease = acquired.lease.clone();
    let (report_gone, device_gone) = mpsc::unbounded_channel();
    let incoming_probes = Incoming::new(options.probe_interval);
    let settings = settings(options, host, lease.subnet);
    let packet_loop = packet_loop(inputs, host, vtep, lease.subnet, incoming_probes.as_ref());
    let netlink = (*netlink).clone();
    let mut overlay = Overlay::start(
        settings,
        packet_loop,
        netlink,
        report_gone,
        inputs.repairs.clone(),
    )
    .await?;
    let protected = protected(options, host.underlay.current(), inputs.netlink).await;
    let peers = peer_set(options, host, vtep, lease.subnet).with_protected(protected);
    let manager_stop = CancellationToken::new();
    let settings = manager::Settings {
        renew_margin: options.renew_margin,
        mass_delete_hold: options.mass_delete_hold,
    };
    let store = Arc::clone(inputs.store);
    let mut manager = manager::spawn(store, acquired, peers, settings, manager_stop.clone());
    // The first set is complete: with it every peer of this moment has its route.
    if let Some(changes) = manager.changes.recv().await {
        overlay.apply(&changes).await?;
    }
    Ok(RunningOverlay {
        vtep,
        lease,
        cache,
        overlay,
        device_gone,
        incoming_probes,
        manager,
        manager_stop,
    })
}

fn settings(options: &RunOptions, host: &Discovered, subnet: Ipv4Net) -> Settings {
    let config = &host.network.config;
    Settings {
        device: host.device.clone(),
        network: config.network,
        subnet,
        workers: options.workers,
        keep_device: options.keep_device,
        blackhole: options.ip_blackhole_route,
        direct_routing: config.backend.direct_routing,
    }
}

/// The packet loop's options.
fn packet_loop(
    inputs: &Inputs<'_>,
    host: &Discovered,
    vtep: LocalVtep,
    subnet: Ipv4Net,
    incoming_probes: Option<&Incoming>,
) -> Options {
    let options = inputs.options;
    let config = &host.network.config;
    let external = host.underlay.current();
    Options {
        vtep,
        mtu: host.mtu,
        source: external.address,
        receive: SocketAddrV4::new(receive_address(options, external), config.backend.port),
        routes: Routes::new(RouteTable::empty(config.network, subnet.prefix_len())),
        ingress_policy: IngressPolicy {
            forward_extra: options.forward_extra.clone(),
            allow_peers: options.allow_peer.clone(),
            strict: options.strict_sources,
            socket_filter: options.socket_filter,
            interface: (options.receive_on == ReceiveOn::Interface).then_some(external.index),
            ..IngressPolicy::new(options.peer_check, config.network, subnet)
        },
        tuning: options.tuning,
        taps: inputs.captures.taps(),
        probes: incoming_probes.map(Incoming::queue),
    }
}

fn peer_set(options: &RunOptions, host: &Discovered, vtep: LocalVtep, subnet: Ipv4Net) -> PeerSet {
    let config = &host.network.config;
    let public_ip = host.underlay.current().public_ip;
    let peers = PeerSet::new(subnet, public_ip, context(config))
        .with_own_mac(vtep.mac)
        .with_subnet_len(config.subnet_len);
    match options.mixed_lengths {
        true => peers.with_mixed_lengths(),
        false => peers,
    }
}

/// Addresses without which this host would lose its network or its datastore.
///
/// Not its resolvers: a resolver in the overlay may well be a container of another host, and
/// refusing that host's lease would cut it off.
async fn protected(
    options: &RunOptions,
    external: &ExternalInterface,
    netlink: &Netlink,
) -> Vec<Ipv4Addr> {
    let mut addresses = vec![external.address, external.public_ip];
    addresses.extend(options.store.addresses());
    let routes = netlink.routes().await.unwrap_or_default();
    let default = routes
        .iter()
        .filter(|route| route.destination.prefix_len() == 0);
    addresses.extend(default.filter_map(|route| route.gateway));
    addresses
}
