//! Last phase of a start: rules and files, then READY. From then on the daemon serves.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::bring_up::RunningOverlay;
use super::discover::Discovered;
use super::inputs::Inputs;
use crate::daemon::failure::Failure;
use crate::daemon::notify::Watchdog;
use crate::daemon::probes::{self, Probes};
use crate::daemon::serve::mtu::BridgeMtus;
use crate::daemon::serve::suspend::SuspendDetector;
use crate::daemon::serve::{Serving, Timers};
use crate::daemon::state::offline_cache::{CacheWriter, OfflineCache};
use crate::daemon::state::state_file::State;
use crate::host::netlink::{Changes, LinkInfo};

/// Installs the rules, writes the files, and tells the service manager. If a file cannot be
/// written, everything that the start changed is rolled back.
pub(super) async fn announce(
    inputs: Inputs<'_>,
    host: Discovered,
    mut running: RunningOverlay,
) -> Result<Serving, Failure> {
    let state = state(&host, &running);
    let probe_setup = probe_setup(&inputs, &host, &running);
    let own = state.subnet;
    // Before the subnet file: it tells docker that we masquerade.
    let mut rules = host
        .rules
        .install(own, inputs.readiness.clone(), inputs.repairs.clone())
        .await;
    if let Err(failure) = host.files.write(&state, host.mtu) {
        rules.roll_back().await;
        remove_overlay(&inputs, running, &host.links).await;
        return Err(failure);
    }
    rules.commit().await;
    let cache_writer = cache_writer(&inputs, &host.network.text, &mut running, &state);
    let peers = running.overlay.peers();
    inputs
        .notifier
        .ready(&format!("serving {own}, {peers} peers"));
    tracing::info!(event = "ready", subnet = %own, peers, "Running backend.");
    let changes = Changes::listen(inputs.netlink).inspect_err(|error| {
        tracing::warn!(
            event = "no_netlink_events", %error,
            "cannot listen for changes on this host: checking every two seconds only"
        );
    });
    let serving = Serving {
        changes: changes.ok(),
        started: inputs.started,
        store: Arc::clone(inputs.store),
        probes: Probes::start(probe_setup, running.incoming_probes),
        received: BTreeMap::new(),
        config: Arc::new(host.network.config),
        netlink: inputs.netlink.clone(),
        overlay: running.overlay,
        manager: running.manager,
        manager_stop: running.manager_stop,
        device_gone: running.device_gone,
        underlay: host.underlay,
        attrs: running.lease.attrs,
        files: host.files,
        state,
        mtu: host.mtu,
        notifier: inputs.notifier.clone(),
        watchdog: Watchdog::of_environment(inputs.notifier.clone()),
        bridge_mtus: BridgeMtus::default(),
        readiness: inputs.readiness.clone(),
        captures: inputs.captures,
        repairs: inputs.repairs,
        offline_cache: cache_writer,
        suspend_detector: SuspendDetector::default(),
        timers: Timers::default(),
        unpublished: None,
        device_repair: None,
        _rules: rules,
        _lock: host.lock,
    };
    serving.update_probes();
    Ok(serving)
}

fn state(host: &Discovered, running: &RunningOverlay) -> State {
    State {
        vtep_mac: running.vtep.mac,
        subnet: running.lease.subnet,
        public_ip: host.underlay.current().public_ip,
        network: host.network.config.network,
        vni: host.network.config.backend.vni,
        instance: running.lease.attrs.instance,
    }
}

/// Stops the packet loop and removes the device, unless it was there before.
async fn remove_overlay(inputs: &Inputs<'_>, running: RunningOverlay, links_before: &[LinkInfo]) {
    let ifindex = running.overlay.ifindex();
    running.overlay.stop();
    // Without --keep-device it is gone with the packet loop.
    if inputs.options.keep_device
        && !links_before.iter().any(|link| link.index == ifindex)
        && let Err(error) = inputs.netlink.delete_link(ifindex).await
    {
        tracing::warn!(event = "device_left", %error, "uvxlan down removes it");
    }
}

fn cache_writer(
    inputs: &Inputs<'_>,
    config: &str,
    running: &mut RunningOverlay,
    state: &State,
) -> CacheWriter {
    let cached = running.cache.take();
    let offline = cached.is_some();
    let cache = cached.unwrap_or_else(|| {
        let store = inputs.options.store.identity();
        let form = inputs.store.lease_form();
        OfflineCache::new(
            store,
            config.to_owned(),
            state,
            running.lease.reserved,
            form,
        )
    });
    CacheWriter::new(inputs.options.state_dir.clone(), cache, offline)
}

fn probe_setup(inputs: &Inputs<'_>, host: &Discovered, running: &RunningOverlay) -> probes::Setup {
    probes::Setup {
        vtep: running.vtep,
        port: host.network.config.backend.port,
        own: running.lease.subnet.network(),
        source: host.underlay.current().address,
        mtu: host.mtu,
        interval: inputs.options.probe_interval,
        routes: running.overlay.options().routes.clone(),
        leases: running.manager.view.clone(),
        observer: inputs.captures.taps().observer(),
    }
}
