//! The overlay on this host: device, packet loop, and a route for each peer. It is rebuilt if the
//! device is deleted.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::num::NonZeroUsize;
use std::sync::Arc;

use ipnet::Ipv4Net;
use tokio::sync::mpsc;

use super::peers::{Peers, TableEntry};
use crate::daemon::failure::Failure;
use crate::daemon::serve::peer_routes::PeerRoutes;
use crate::daemon::serve::repairs::{Repaired, Repairs};
use crate::dataplane::counters::Totals;
use crate::dataplane::ingress_policy::IngressPolicy;
use crate::dataplane::peer_counters::PeerTotals;
use crate::dataplane::{Dataplane, DeviceGone, Options};
use crate::host::link::{self, DeviceSettings, LinkError};
use crate::host::loop_check::{Loop, find_loops};
use crate::host::netlink::Netlink;
use crate::host::routes::{NextHop, NextHopChange, OverlayNetwork, RouteReport};
use crate::route::peer::RemoteVtep;
use crate::route::table::{Change, RouteTable};
use crate::subnet::manager::PeerChange;
use crate::subnet::validate::PeerRecord;
use crate::sys::tun::{self, Tun, TunOffload, TunOptions};

/// Peers checked for loops in one reconciliation, at least: all peers of most clusters.
const MIN_LOOP_CHECKS: usize = 64;
/// Reconciliations, two seconds apart, in which every peer is checked for loops once.
const LOOP_CHECK_ROUNDS: usize = 30;

/// What the overlay is made of and does not change.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Name of the device: `flannel.<VNI>`.
    pub(crate) device: String,
    /// The overlay network.
    pub(crate) network: Ipv4Net,
    pub(crate) subnet: Ipv4Net,
    /// Packet threads; by default one per processor, at most four.
    pub(crate) workers: Option<NonZeroUsize>,
    /// Whether the device stays when the daemon stops.
    pub(crate) keep_device: bool,
    /// Whether packets to our subnet that no other route takes are discarded.
    pub(crate) blackhole: bool,
    /// Whether peers on the same link are reached without the tunnel.
    pub(crate) direct_routing: bool,
}

/// The running overlay.
#[derive(Debug)]
pub(crate) struct Overlay {
    settings: Settings,
    /// Of the packet loop. MTU, addresses and interface follow the underlay.
    options: Options,
    netlink: Netlink,
    peers: Peers,
    peer_routes: PeerRoutes,
    /// Whether the kernel's routes should be compared soon.
    routes_in_doubt: bool,
    ifindex: u32,
    dataplane: Option<Dataplane>,
    report_gone: mpsc::UnboundedSender<DeviceGone>,
    repairs: Repairs,
}

impl Overlay {
    /// Opens the device, sets it up and starts the packet loop, with no peers yet. A worker
    /// that loses the device reports it to `report_gone`.
    pub(crate) async fn start(
        settings: Settings,
        options: Options,
        netlink: Netlink,
        report_gone: mpsc::UnboundedSender<DeviceGone>,
        repairs: Repairs,
    ) -> Result<Self, Failure> {
        let mut this = Self {
            peer_routes: PeerRoutes::new(settings.direct_routing),
            settings,
            options,
            netlink,
            peers: Peers::default(),
            routes_in_doubt: false,
            ifindex: 0,
            dataplane: None,
            report_gone,
            repairs,
        };
        this.open().await?;
        Ok(this)
    }

    fn device_settings(&self) -> DeviceSettings {
        DeviceSettings {
            mtu: u32::from(self.options.mtu),
            address: self.settings.subnet.network(),
            network: self.settings.network,
            tx_queue_len: None,
        }
    }

    async fn open(&mut self) -> Result<(), Failure> {
        let Settings {
            device,
            workers,
            keep_device,
            ..
        } = &self.settings;
        let tun = tun::open(&TunOptions {
            name: device.clone(),
            queues: workers.map_or_else(default_workers, NonZeroUsize::get),
            offload: match self.options.tuning.offloads.read {
                true => TunOffload::TcpUdp,
                false => TunOffload::None,
            },
        })?;
        if let Some(queue) = tun.queues.first() {
            queue
                .set_persistent(*keep_device)
                .map_err(|source| Failure::File {
                    tried: format!("set whether {device} outlives this process"),
                    source,
                })?;
        }
        note_own_addresses(&self.netlink, &self.options.ingress_policy).await;
        let link = self.netlink.expect_link(device).await?;
        link::configure(&self.netlink, link.index, self.device_settings()).await?;
        tracing::info!(
            event = "device",
            device,
            mtu = self.options.mtu,
            queues = tun.queues.len(),
            vnet_hdr = tun.vnet_hdr,
            "device is up"
        );
        self.dataplane = Some(self.start_packet_loop(tun)?);
        self.ifindex = link.index;
        Ok(())
    }

    fn start_packet_loop(&self, tun: Tun) -> Result<Dataplane, Failure> {
        let report_gone = self.report_gone.clone();
        let dataplane = Dataplane::start(tun, &self.options, move |gone| {
            // There is no receiver only while the daemon stops.
            let _ = report_gone.send(gone);
        })?;
        let (offloads, lacking) = dataplane.offloads();
        for part in lacking {
            tracing::warn!(
                event = "offload_missing",
                part = part.part,
                "{}",
                part.reason
            );
        }
        tracing::info!(
            event = "packet_loop", workers = dataplane.workers(), %offloads,
            "packet loop runs"
        );
        Ok(dataplane)
    }

    /// Rebuilds device and packet loop; the peers stay. If it fails it can be retried.
    pub(crate) async fn restore(&mut self) -> Result<(), Failure> {
        if let Some(mut broken) = self.dataplane.take() {
            broken.stop();
        }
        self.peers.reset_counts();
        self.open().await?;
        if let Err(error) = self.reconcile_routes().await {
            tracing::warn!(event = "routes_failed", %error, "trying again soon");
            self.routes_in_doubt = true;
        }
        Ok(())
    }

    /// Compares device, address and routes with what they should be, and repairs them. Fails if
    /// the device is gone, which its workers report as well, or if the kernel refuses something;
    /// everything else is repaired nonetheless. Routes that are not ours are never touched.
    pub(crate) async fn reconcile(&mut self) -> Result<(), Failure> {
        let settings = self.device_settings();
        let device = match link::configure(&self.netlink, self.ifindex, settings).await {
            // Without the device there are no routes to repair.
            Err(LinkError::Netlink(error)) if error.is_missing() => return Err(error.into()),
            Ok(true) => {
                tracing::warn!(
                    event = "device_repaired",
                    device = self.settings.device,
                    "the device's settings had been changed; restored them"
                );
                self.repairs.count(Repaired::Device);
                Ok(())
            }
            other => other.map(|_| ()),
        };
        note_own_addresses(&self.netlink, &self.options.ingress_policy).await;
        if let Some(dataplane) = &self.dataplane {
            dataplane.count_kernel_drops();
        }
        // If it fails, the comparison of all routes below makes up for it.
        let _ = self.check_for_loops().await;
        self.routes_in_doubt = false;
        let report = self.reconcile_routes().await?;
        if report.added + report.replaced + report.removed > 0 {
            tracing::warn!(
                event = "routes_repaired",
                added = report.added,
                replaced = report.replaced,
                removed = report.removed,
                "routes to peers had been changed; restored them"
            );
            self.repairs.count(Repaired::Routes);
        }
        Ok(device?)
    }

    /// Applies changes of the peers: first to the ingress policy, then to the route table, then
    /// to the kernel's routes, so that no packet arrives for which there is no peer yet. Fails if
    /// the kernel's routes cannot be read; a route that is refused is logged.
    pub(crate) async fn apply(&mut self, changes: &[PeerChange]) -> Result<(), Failure> {
        let addresses = changes.iter().filter_map(new_address);
        let loops = find_loops(&self.netlink, self.options.source, addresses, self.ifindex).await;
        let mut loops = loops.into_iter();
        let mut entries = Vec::with_capacity(changes.len());
        for change in changes {
            log_change(change);
            let looping = new_address(change).and_then(|_| loops.next().flatten());
            let dataplane = self.dataplane.as_ref();
            let counted = |id| dataplane.map(|it| it.peer_totals(id)).unwrap_or_default();
            entries.push(self.peers.apply(change, looping, counted));
        }
        self.publish(entries).await
    }

    /// Enters peers into the ingress policy and the route table, and updates the kernel's routes.
    async fn publish(&mut self, entries: Vec<TableEntry>) -> Result<(), Failure> {
        let subnets: BTreeSet<_> = entries.iter().map(|(subnet, _)| *subnet).collect();
        let port = self.options.receive.port();
        let changes = entries.into_iter().map(|entry| table_change(entry, port));
        let table = self.table().with(changes);
        if let Some(dataplane) = &mut self.dataplane {
            dataplane.admit_peers(&table);
        }
        self.options.routes.publish(table);

        let changes = self.decide(subnets).await;
        if self.dataplane.is_none() {
            // All routes are set when the device is rebuilt.
            return Ok(());
        }
        if self.peer_routes.needs_reconcile(&changes) {
            self.reconcile_routes().await?;
        } else {
            let updated = self
                .peer_routes
                .update(&self.netlink, self.overlay_network(), &changes)
                .await;
            // A foreign route may be in the way. A peer that causes this over and over must not
            // make us read all routes each time.
            self.routes_in_doubt |= !updated;
        }
        Ok(())
    }

    async fn decide(&mut self, subnets: BTreeSet<Ipv4Net>) -> Vec<NextHopChange> {
        let peers = &self.peers;
        let subnets = subnets
            .into_iter()
            .map(|subnet| (subnet, peers.reachable_at(subnet)));
        self.peer_routes
            .decide(&self.netlink, self.ifindex, subnets)
            .await
    }

    /// Checks whether the kernel's routes now send some peers' datagrams back to this host.
    async fn check_for_loops(&mut self) -> Result<(), Failure> {
        let count = self.peers.count().div_ceil(LOOP_CHECK_ROUNDS);
        let peers = self.peers.next_to_check(count.max(MIN_LOOP_CHECKS));
        let addresses = peers.iter().map(|peer| peer.public_ip);
        let loops = find_loops(&self.netlink, self.options.source, addresses, self.ifindex).await;
        let entries = self.peers.update_loops(peers.into_iter().zip(loops));
        match entries.is_empty() {
            true => Ok(()),
            false => self.publish(entries).await,
        }
    }

    fn overlay_network(&self) -> OverlayNetwork {
        OverlayNetwork {
            network: self.settings.network,
            device: self.ifindex,
            blackhole: self.settings.blackhole.then_some(self.settings.subnet),
        }
    }

    async fn reconcile_routes(&mut self) -> Result<RouteReport, Failure> {
        let overlay = self.overlay_network();
        let address = |subnet| self.peers.reachable_at(subnet);
        Ok(self
            .peer_routes
            .reconcile(&self.netlink, overlay, address)
            .await?)
    }

    /// Changes the device's MTU.
    pub(crate) async fn set_mtu(&mut self, mtu: u16) -> Result<(), Failure> {
        let settings = DeviceSettings {
            mtu: u32::from(mtu),
            ..self.device_settings()
        };
        link::configure(&self.netlink, self.ifindex, settings).await?;
        self.options.mtu = mtu;
        if let Some(dataplane) = &self.dataplane {
            dataplane.set_mtu(mtu);
        }
        Ok(())
    }

    /// This host has another address, or has it on another interface: sends and receives there
    /// from now on. If it fails, [`Overlay::restore`] can be retried.
    pub(crate) async fn set_source(
        &mut self,
        source: Ipv4Addr,
        interface: u32,
    ) -> Result<(), Failure> {
        let options = &mut self.options;
        if let Some(only) = &mut options.ingress_policy.interface {
            *only = interface;
        }
        if !options.receive.ip().is_unspecified() {
            options.receive.set_ip(source);
        }
        options.source = source;
        self.restore().await
    }

    /// Lets datagrams of unknown senders through to the packet loop while a capture runs there.
    pub(crate) fn follow_captures(&mut self) {
        let shown = self.options.taps.is_outer_observed();
        let table = self.table();
        if let Some(dataplane) = &mut self.dataplane {
            dataplane.set_filter_bypass(shown, &table);
        }
    }

    pub(crate) const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The packet loop's options.
    pub(crate) const fn options(&self) -> &Options {
        &self.options
    }

    /// The packet loop, while it runs.
    pub(crate) const fn dataplane(&self) -> Option<&Dataplane> {
        self.dataplane.as_ref()
    }

    /// Index of the device.
    pub(crate) const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// The current route table.
    pub(crate) fn table(&self) -> Arc<RouteTable> {
        self.options.routes.current()
    }

    /// How the kernel sends to a peer's subnet.
    pub(crate) fn next_hop(&self, subnet: Ipv4Net) -> Option<NextHop> {
        self.peer_routes.get(subnet)
    }

    /// Whether the kernel's routes should be compared soon.
    pub(crate) const fn routes_in_doubt(&self) -> bool {
        self.routes_in_doubt
    }

    /// Iterations of each worker so far.
    pub(crate) fn progress(&self) -> Vec<u64> {
        let progress = self.dataplane.as_ref().map(Dataplane::progress);
        progress.unwrap_or_default()
    }

    /// Number of peers that packets are sent to.
    pub(crate) fn peers(&self) -> usize {
        self.peers.reachable().len()
    }

    /// Peers that nothing is sent to, because it would come back: subnet, public address,
    /// and why.
    pub(crate) fn looping(&self) -> impl Iterator<Item = (Ipv4Net, Ipv4Addr, Loop)> {
        self.peers.looping()
    }

    /// All peers, and what passed between each and this host since the peer was added or the
    /// packet loop started.
    pub(crate) fn peer_totals(&self) -> Vec<(PeerRecord, PeerTotals)> {
        let dataplane = self.dataplane.as_ref();
        let counted = |id| dataplane.map(|it| it.peer_totals(id)).unwrap_or_default();
        self.peers.totals(counted).collect()
    }

    /// Counters of the packet loop, while it runs.
    pub(crate) fn totals(&self) -> Option<Totals> {
        self.dataplane.as_ref().map(Dataplane::totals)
    }

    /// Stops the packet loop. The device and its routes vanish with it, unless they are kept.
    pub(crate) fn stop(mut self) {
        if let Some(mut dataplane) = self.dataplane.take() {
            dataplane.stop();
        }
    }
}

/// Tells the packet loop which addresses are this host's. If they cannot be read, the last ones
/// stay.
async fn note_own_addresses(netlink: &Netlink, policy: &IngressPolicy) {
    match netlink.addresses(None).await {
        Ok(addresses) => policy.own.set(addresses.iter().filter_map(|entry| {
            let IpAddr::V4(address) = entry.address else {
                return None;
            };
            Some(address)
        })),
        Err(error) => tracing::debug!(event = "addresses_unseen", %error, "trying again soon"),
    }
}

/// Where datagrams of a new or changed peer are sent.
const fn new_address(change: &PeerChange) -> Option<Ipv4Addr> {
    match change {
        PeerChange::Added(peer) | PeerChange::Updated { new: peer, .. } => Some(peer.public_ip),
        PeerChange::Removed(_) => None,
    }
}

fn table_change((subnet, peer): TableEntry, port: u16) -> Change {
    let peer = peer.and_then(|(peer, id)| {
        let endpoint = SocketAddrV4::new(peer.public_ip, port);
        RemoteVtep::new(endpoint, peer.vxlan.vtep_mac, id)
    });
    (subnet, peer)
}

fn log_change(change: &PeerChange) {
    match change {
        PeerChange::Added(peer) => tracing::info!(
            event = "peer_added", subnet = %peer.subnet, public_ip = %peer.public_ip,
            vtep_mac = %peer.vxlan.vtep_mac, "peer added"
        ),
        PeerChange::Updated { old, new } => tracing::info!(
            event = "peer_updated", subnet = %new.subnet, public_ip = %new.public_ip,
            vtep_mac = %new.vxlan.vtep_mac, old_public_ip = %old.public_ip,
            old_vtep_mac = %old.vxlan.vtep_mac, "peer updated"
        ),
        PeerChange::Removed(peer) => tracing::info!(
            event = "peer_removed", subnet = %peer.subnet, public_ip = %peer.public_ip, "peer removed"
        ),
    }
}

fn default_workers() -> usize {
    std::thread::available_parallelism()
        .map_or(1, NonZeroUsize::get)
        .min(4)
}
