//! The life of `uvxlan run`, from the first look at the store to the last packet.
//!
//! Order of a start, as flannel's where somebody can see it: network config, interface, a look
//! at all that is needed ([`preflight`]), identity, lease, device, packet loop, peers and routes,
//! rules, state file, subnet file, READY=1. Until there is a lease nothing on the host is
//! changed. Where the store does not answer, config, lease and peers of an earlier life stand
//! in for it ([`crate::daemon::state::memory`]).

pub mod acquire;
pub mod identity;
pub mod preflight;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::instance;
use super::notify::{self, Watchdog};
use super::options::{ReceiveOn, RunOptions};
use super::probes::{self, Post, Probes};
use crate::control::{Request, Response};
use crate::daemon::api::capture::Captures;
use crate::daemon::api::control::{self, PendingRequest};
use crate::daemon::api::health::{self, Readiness};
use crate::daemon::api::metrics;
use crate::daemon::api::status;
use crate::daemon::serve::mtu::{BridgeMtus, device_mtu};
use crate::daemon::serve::overlay::{Overlay, Plan};
use crate::daemon::serve::privileges;
use crate::daemon::serve::rules::FirewallSetup;
use crate::daemon::serve::suspend::Suspended;
use crate::daemon::serve::underlay::Underlay;
use crate::daemon::serve::{Due, Serving};
use crate::daemon::start::identity::Traces;
use crate::daemon::start::preflight::Needs;
use crate::daemon::state::files::Files;
use crate::daemon::state::memory::{self, Memory};
use crate::daemon::state::offline_cache::{self, Remembered};
use crate::daemon::state::state_file::{self, State};
use crate::dataplane::ingress_policy::Guard;
use crate::host::interface::{self, ExternalInterface, Selection};
use crate::host::link;
use crate::host::netlink::{Changes, Netlink};
use crate::subnet::manager::{self, PeerSet};
use crate::subnet::store::Store;
use crate::subnet::validate::Context;

/// Runs until `stop` is cancelled, or something ends it.
///
/// # Errors
/// [`Failure`]; its exit status is never 0.
pub async fn run(options: &RunOptions, stop: CancellationToken) -> Result<(), Failure> {
    let store = options.store.open()?;
    let netlink = Netlink::connect()?;
    let readiness = Readiness::default();
    health::serve(&options.healthz_ip, options.healthz_port, readiness.clone()).await?;
    let started = Instant::now();
    let (requests, mut pending) = mpsc::channel(16);
    let captures = Captures::default();
    let _socket = control::serve(&options.control_socket, requests.clone(), captures.clone());
    metrics::serve(&options.metrics_listen, requests).await;
    let serving = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        serving = start(options, &store, &netlink, started, captures, &readiness) => serving?,
        never = answer_while_starting(&mut pending, started, store.as_ref()) => match never {},
    };
    privileges::serving();
    readiness.set(true);
    serving.serve(stop, &mut pending).await;
    readiness.set(false);
    Ok(())
}

/// Answers until it is dropped, whether or not anybody can ask.
async fn answer_while_starting(
    requests: &mut mpsc::Receiver<PendingRequest>,
    started: Instant,
    store: &dyn Store,
) -> std::convert::Infallible {
    while let Some(pending) = requests.recv().await {
        let status = status::starting(started, &store.describe());
        let response = match pending.request {
            Request::Status => Response::Status(Box::new(status)),
            _ => Response::Error(format!("not serving yet: {}", status.phase)),
        };
        let _ = pending.respond.send(response);
    }
    std::future::pending().await
}

async fn start(
    options: &RunOptions,
    store: &Arc<dyn Store>,
    netlink: &Netlink,
    started: Instant,
    captures: Captures,
    readiness: &Readiness,
) -> Result<Serving, Failure> {
    let state = state_file::load(&options.state_dir).unwrap_or_else(|error| {
        tracing::warn!(event = "state_file", %error);
        None
    });
    let memory = offline_cache::find(options, state.as_ref()).and_then(|memory| {
        let config = acquire::parse(options, memory.config.as_bytes()).ok()?;
        Some((memory, config))
    });
    let asking = acquire::network_config(options, store.as_ref());
    let found = memory::unless_remembered(memory.is_some(), asking).await?;
    let (selection, external) = external_interface(options, netlink).await?;
    let memory = memory.filter(|(memory, config)| memory::fits(memory, config, &external));
    let is_away = found.is_none() && memory.is_some();
    let (config, config_text) = match (found, &memory) {
        (Some(found), _) => found,
        (None, Some((memory, config))) => (config.clone(), memory.config.clone()),
        (None, None) => acquire::network_config(options, store.as_ref()).await?,
    };
    // The store may have another config by now.
    let memory = memory.filter(|(memory, _)| memory::fits(memory, &config, &external));
    let mtu = device_mtu(&config, &external)?;
    let device = format!("flannel.{}", config.backend.vni);
    let lock = instance::claim(&device)?;
    let files = Files::new(options);
    let rules = FirewallSetup::detect(options, &config, state.as_ref()).await;
    let links = netlink.links().await?;
    preflight::check(&Needs {
        address: receive_address(options, &external),
        port: config.backend.port,
        device: &device,
        links: &links,
        files: &files,
        rules: &rules,
    })?;

    let kernel_device = links
        .iter()
        .find(|link| link.name == device && link.kind.as_deref() == Some("vxlan"))
        .and_then(|link| link.mac);
    let traces = Traces {
        state: state.as_ref(),
        kernel_device,
        ..Traces::default()
    };
    let instance = acquire::instance_id(options);
    let leased = if is_away {
        None
    } else {
        let asking = acquire::lease(
            options,
            store.as_ref(),
            &config,
            &external,
            traces.clone(),
            instance,
        );
        memory::unless_remembered(memory.is_some(), asking).await?
    };
    let (vtep, acquired) = match (leased, &memory) {
        (Some(leased), _) => leased,
        (None, Some((memory, _))) => memory::lease(options, &config, memory, &traces, |mac| {
            Ok(acquire::request(options, &config, &external, &traces, mac, instance)?.attrs)
        })?,
        (None, None) => {
            acquire::lease(
                options,
                store.as_ref(),
                &config,
                &external,
                traces,
                instance,
            )
            .await?
        }
    };
    let from_memory = acquired.is_remembered();
    let reserved = acquired.lease.reserved;
    let own = acquired.lease.subnet;
    let attrs = acquired.lease.attrs.clone();

    if let Some(mac) = link::take_over_kernel_vxlan(netlink, &device).await? {
        tracing::warn!(
            event = "take_over", device, %mac,
            "took over from a kernel vxlan device: deleted it, its MAC is kept"
        );
    }
    let (ended, device_gone) = mpsc::unbounded_channel();
    let post = Post::new(options.probe_interval);
    let port = config.backend.port;
    let plan = Plan {
        device,
        vtep,
        network: config.network,
        subnet: own,
        mtu,
        source: external.address,
        receive: SocketAddrV4::new(receive_address(options, &external), port),
        workers: options.workers,
        guard: Guard {
            forward_extra: options.forward_extra.clone(),
            allow_peers: options.allow_peer.clone(),
            strict: options.strict_sources,
            socket_filter: options.socket_filter,
            interface: (options.receive_on == ReceiveOn::Interface).then_some(external.index),
            ..Guard::new(options.peer_check, config.network, own)
        },
        tuning: options.tuning,
        taps: captures.taps(),
        probes: post.as_ref().map(Post::inbox),
        keep_device: options.keep_device,
        blackhole: options.ip_blackhole_route,
        direct_routing: config.backend.direct_routing,
    };
    let mut overlay = Overlay::start(plan, netlink.clone(), ended).await?;

    let context = Context {
        network: config.network,
        vni: config.backend.vni,
    };
    let peers = PeerSet::new(own, external.public_ip, context)
        .with_own_mac(vtep.mac)
        .with_subnet_len(config.subnet_len)
        .with_protected(protected(options, &external, netlink).await);
    let peers = match options.mixed_lengths {
        true => peers.with_mixed_lengths(),
        false => peers,
    };
    let manager_stop = CancellationToken::new();
    let mut manager = manager::spawn(
        Arc::clone(store),
        acquired,
        peers,
        manager::Settings {
            margin: options.renew_margin,
            mass_delete_hold: options.mass_delete_hold,
        },
        manager_stop.clone(),
    );
    // The first set is complete: with it every peer of this moment has its route.
    if let Some(changes) = manager.changes.recv().await {
        overlay.apply(&changes, port).await?;
    }
    let state = State {
        vtep_mac: vtep.mac,
        subnet: own,
        public_ip: external.public_ip,
        network: config.network,
        vni: config.backend.vni,
        instance: attrs.instance,
    };
    // Before the subnet file: it tells docker that we masquerade.
    let mut rules = rules.install(own, readiness.clone()).await;
    if let Err(failure) = files.write(&state, mtu) {
        rules.roll_back().await;
        let ifindex = overlay.ifindex();
        overlay.stop();
        // One that was there before is left as a kept one is.
        if options.keep_device
            && !links.iter().any(|link| link.index == ifindex)
            && let Err(error) = netlink.delete_link(ifindex).await
        {
            tracing::warn!(event = "device_left", %error, "uvxlan down removes it");
        }
        return Err(failure);
    }
    rules.commit().await;
    let form = store.lease_form();
    let remembered = match memory {
        Some((memory, _)) if from_memory => memory,
        _ => Remembered::new(
            options.store.identity(),
            config_text,
            &state,
            reserved,
            form,
        ),
    };
    notify::ready(&format!("serving {own}, {} peers", overlay.peers()));
    tracing::info!(event = "ready", subnet = %own, peers = overlay.peers(), "Running backend.");
    let changes = Changes::listen(netlink).inspect_err(|error| {
        tracing::warn!(event = "no_netlink_events", %error, "the host is looked at every two seconds only");
    });
    let probing = probes::Setup {
        vtep,
        port,
        own: own.network(),
        source: external.address,
        mtu,
        interval: options.probe_interval,
        routes: overlay.routes().clone(),
        leases: manager.view.clone(),
        viewer: captures.taps().viewer(),
    };
    let serving = Serving {
        changes: changes.ok(),
        started,
        store: Arc::clone(store),
        probes: Probes::start(probing, post),
        seen: BTreeMap::new(),
        config: Arc::new(config),
        netlink: netlink.clone(),
        overlay,
        manager,
        manager_stop,
        device_gone,
        underlay: Underlay::new(selection, external),
        attrs,
        files,
        state,
        mtu,
        watchdog: Watchdog::of_environment(),
        bridge_mtus: BridgeMtus::default(),
        readiness: readiness.clone(),
        captures,
        memory: Memory::new(options.state_dir.clone(), remembered, from_memory),
        suspended: Suspended::default(),
        due: Due::default(),
        unpublished: None,
        repair: None,
        _rules: rules,
        _lock: lock,
    };
    serving.tell_probes();
    Ok(serving)
}

async fn external_interface(
    options: &RunOptions,
    netlink: &Netlink,
) -> Result<(Selection, ExternalInterface), Failure> {
    let selection = Selection {
        interfaces: options.iface.clone(),
        patterns: options.iface_regex.clone(),
        can_reach: options.iface_can_reach,
        public_ip: options.public_ip,
    };
    let snapshot = interface::snapshot(netlink, &selection).await?;
    let external = interface::choose(&selection, &snapshot)?;
    tracing::info!(
        event = "interface", interface = external.name, address = %external.address,
        public_ip = %external.public_ip, mtu = external.mtu, "using this interface"
    );
    Ok((selection, external))
}

fn receive_address(options: &RunOptions, external: &ExternalInterface) -> Ipv4Addr {
    match options.receive_on {
        ReceiveOn::Any => Ipv4Addr::UNSPECIFIED,
        ReceiveOn::Public | ReceiveOn::Interface => external.address,
    }
}

/// Addresses without which this host would lose its network or its datastore.
///
/// Not the resolvers: one inside of the overlay may well be a container of another host,
/// and refusing its lease would be the outage.
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
