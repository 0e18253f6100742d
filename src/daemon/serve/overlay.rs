//! The overlay on this host: device, packet loop, and a route for each peer. It can be
//! put together again when somebody deletes the device.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::num::NonZeroUsize;
use std::sync::Arc;

use ipnet::Ipv4Net;
use tokio::sync::mpsc;

use super::peers::{Peers, Place};
use crate::daemon::failure::Failure;
use crate::daemon::serve::peer_routes::PeerRoutes;
use crate::daemon::serve::repairs::Mended;
use crate::dataplane::counters::Totals;
use crate::dataplane::inbound::header_checks::Vtep;
use crate::dataplane::inbound::probes::Inbox;
use crate::dataplane::ingress_policy::Guard;
use crate::dataplane::peer_counters::PeerTotals;
use crate::dataplane::tap::Taps;
use crate::dataplane::{Dataplane, DeviceGone, Options, Tuning};
use crate::host::link::{self, DeviceSettings, LinkError};
use crate::host::loop_check::{Loop, find_loops};
use crate::host::netlink::Netlink;
use crate::host::routes::{NextHop, NextHopChange, OverlayNetwork, RouteReport};
use crate::route::peer::Peer;
use crate::route::publish::Routes;
use crate::route::table::{Change, RouteTable};
use crate::subnet::manager::PeerChange;
use crate::subnet::validate::PeerRecord;
use crate::sys::tun::{self, TunOffload, TunOptions};

/// Peers whose way is looked at in one reconciliation, at least: all of them on most hosts.
const LOOKS: usize = 64;
/// Reconciliations, two seconds apart, in which all peers have had their turn.
const ROUNDS: usize = 30;

/// What the overlay is made of; it does not change while the daemon lives.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name of the device: `flannel.<VNI>`.
    pub device: String,
    /// Our VNI and MAC.
    pub vtep: Vtep,
    /// The overlay network.
    pub network: Ipv4Net,
    /// Our subnet.
    pub subnet: Ipv4Net,
    /// MTU of the device.
    pub mtu: u16,
    /// Address from which datagrams are sent.
    pub source: Ipv4Addr,
    /// Where datagrams are received.
    pub receive: SocketAddrV4,
    /// Threads; by default one for each processor, at most four.
    pub workers: Option<NonZeroUsize>,
    /// Who may send what.
    pub guard: Guard,
    /// How the packet loop does its work.
    pub tuning: Tuning,
    /// Who captures.
    pub taps: Taps,
    /// Where probes of peers go, if they are answered.
    pub probes: Option<Arc<Inbox>>,
    /// Whether the device stays when the daemon stops.
    pub keep_device: bool,
    /// Whether packets to our subnet that no other route takes are discarded.
    pub blackhole: bool,
    /// Whether peers on the same link are reached without the tunnel.
    pub direct_routing: bool,
}

impl Plan {
    fn device_settings(&self) -> DeviceSettings {
        DeviceSettings {
            mtu: u32::from(self.mtu),
            address: self.subnet.network(),
            network: self.network,
            tx_queue_len: None,
        }
    }
}

/// The running overlay.
#[derive(Debug)]
pub struct Overlay {
    plan: Plan,
    netlink: Netlink,
    routes: Routes,
    peers: Peers,
    /// How the kernel must send to each of them.
    peer_routes: PeerRoutes,
    /// Whether the kernel's routes should be looked at soon.
    doubtful: bool,
    ifindex: u32,
    dataplane: Option<Dataplane>,
    ended: mpsc::UnboundedSender<DeviceGone>,
}

impl Overlay {
    /// Opens the device, sets it up and starts the packet loop, with no peers yet. A worker
    /// that loses the device says so on `ended`.
    ///
    /// # Errors
    /// [`Failure`] names what is missing.
    pub async fn start(
        plan: Plan,
        netlink: Netlink,
        ended: mpsc::UnboundedSender<DeviceGone>,
    ) -> Result<Self, Failure> {
        let subnet_len = plan.subnet.prefix_len();
        let routes = Routes::new(RouteTable::empty(plan.network, subnet_len));
        let mut this = Self {
            peer_routes: PeerRoutes::new(plan.direct_routing),
            plan,
            netlink,
            routes,
            peers: Peers::default(),
            doubtful: false,
            ifindex: 0,
            dataplane: None,
            ended,
        };
        this.open().await?;
        Ok(this)
    }

    async fn open(&mut self) -> Result<(), Failure> {
        let plan = &self.plan;
        let queues = plan.workers.map_or_else(default_workers, NonZeroUsize::get);
        let options = TunOptions {
            name: plan.device.clone(),
            queues,
            offload: if plan.tuning.offloads.read {
                TunOffload::TcpUdp
            } else {
                TunOffload::None
            },
        };
        let tun = tun::open(&options)?;
        if let Some(queue) = tun.queues.first() {
            queue
                .set_persistent(plan.keep_device)
                .map_err(|source| Failure::File {
                    tried: format!("make {} outlive this process, or not", plan.device),
                    source,
                })?;
        }
        note_own_addresses(&self.netlink, &plan.guard).await;
        let found = self.netlink.expect_link(&plan.device).await?;
        link::configure(&self.netlink, found.index, plan.device_settings()).await?;
        tracing::info!(
            event = "device",
            device = plan.device,
            mtu = plan.mtu,
            queues = tun.queues.len(),
            vnet_hdr = tun.vnet_hdr,
            "device is up"
        );
        let options = Options {
            vtep: plan.vtep,
            mtu: plan.mtu,
            source: plan.source,
            receive: plan.receive,
            routes: self.routes.clone(),
            guard: plan.guard.clone(),
            tuning: plan.tuning,
            taps: plan.taps.clone(),
            probes: plan.probes.clone(),
        };
        let ended = self.ended.clone();
        let dataplane = Dataplane::start(tun, &options, move |gone| {
            // Nobody listens only when the daemon is on its way out.
            let _ = ended.send(gone);
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
        self.ifindex = found.index;
        self.dataplane = Some(dataplane);
        Ok(())
    }

    /// Puts device and packet loop together again; peers stay as they are.
    ///
    /// # Errors
    /// As [`Overlay::start`]; it can be tried again.
    pub async fn restore(&mut self) -> Result<(), Failure> {
        if let Some(mut broken) = self.dataplane.take() {
            broken.stop();
        }
        self.peers.forget_counts();
        self.open().await?;
        if let Err(error) = self.reconcile_routes().await {
            tracing::warn!(event = "routes_failed", %error, "looking again soon");
            self.doubtful = true;
        }
        Ok(())
    }

    /// Looks whether device, address and routes are still what they should be, and mends
    /// what can be mended. Routes that are not ours are never touched.
    ///
    /// # Errors
    /// When the device is gone, which its workers report as well, or the kernel refuses
    /// something; all else is mended nonetheless.
    pub async fn reconcile(&mut self) -> Result<(), Failure> {
        let settings = self.plan.device_settings();
        let device = match link::configure(&self.netlink, self.ifindex, settings).await {
            // Nothing can lead there.
            Err(LinkError::Netlink(error)) if error.is_missing() => return Err(error.into()),
            Ok(true) => {
                tracing::warn!(
                    event = "device_repaired",
                    device = self.plan.device,
                    "the device had been changed; set it up again"
                );
                Mended::Device.note();
                Ok(())
            }
            other => other.map(|_| ()),
        };
        note_own_addresses(&self.netlink, &self.plan.guard).await;
        if let Some(dataplane) = &self.dataplane {
            dataplane.count_kernel_drops();
        }
        // What it leaves undone is done below, where all routes are compared.
        let _ = self.look_for_loops().await;
        self.doubtful = false;
        let report = self.reconcile_routes().await?;
        if report.added + report.replaced + report.removed > 0 {
            tracing::warn!(
                event = "routes_repaired",
                added = report.added,
                replaced = report.replaced,
                removed = report.removed,
                "routes to peers had been changed; put them back"
            );
            Mended::Routes.note();
        }
        Ok(device?)
    }

    /// Takes in what changed among the peers: first who may send, then the route table, then
    /// the kernel's routes, so that no packet comes for which there is no peer yet.
    ///
    /// # Errors
    /// When the kernel's routes cannot be read. A route that is refused is logged.
    pub async fn apply(&mut self, changes: &[PeerChange], port: u16) -> Result<(), Failure> {
        let addresses = changes.iter().filter_map(address);
        let found = find_loops(&self.netlink, self.plan.source, addresses, self.ifindex).await;
        let mut found = found.into_iter();
        let mut table_changes = Vec::with_capacity(changes.len());
        let mut touched = BTreeSet::new();
        for change in changes {
            log_change(change);
            let found = address(change).and_then(|_| found.next().flatten());
            let dataplane = self.dataplane.as_ref();
            let counted = |id| dataplane.map(|it| it.peer_totals(id)).unwrap_or_default();
            let place = self.peers.apply(change, found, counted);
            touched.insert(place.0);
            table_changes.push(route(place, port));
        }
        self.publish(table_changes);
        self.follow(touched).await
    }

    /// Sets the kernel's routes of these peers to where they are reached now.
    async fn follow(&mut self, touched: BTreeSet<Ipv4Net>) -> Result<(), Failure> {
        let changes = self.decide(touched).await;
        if self.dataplane.is_none() {
            // All of them are set when the device is back.
            return Ok(());
        }
        if self.peer_routes.needs_reconcile(&changes) {
            self.reconcile_routes().await?;
        } else {
            let updated = self
                .peer_routes
                .update(&self.netlink, self.overlay_network(), &changes)
                .await;
            // A route is in the way, say. Whoever makes that happen again and again must not
            // make us read all routes each time.
            self.doubtful |= !updated;
        }
        Ok(())
    }

    async fn decide(&mut self, subnets: BTreeSet<Ipv4Net>) -> Vec<NextHopChange> {
        let peers = &self.peers;
        let subnets = subnets
            .into_iter()
            .map(|subnet| (subnet, peers.reached_at(subnet)));
        self.peer_routes
            .decide(&self.netlink, self.ifindex, subnets)
            .await
    }

    /// Looks whether the kernel's routes now send some peers' datagrams back to this host.
    async fn look_for_loops(&mut self) -> Result<(), Failure> {
        let looks = self.peers.count().div_ceil(ROUNDS).max(LOOKS);
        let peers = self.peers.next(looks);
        let addresses = peers.iter().map(|peer| peer.public_ip);
        let found = find_loops(&self.netlink, self.plan.source, addresses, self.ifindex).await;
        let changes = self.peers.look(peers.into_iter().zip(found));
        if changes.is_empty() {
            return Ok(());
        }
        let touched = changes.iter().map(|(subnet, _)| *subnet).collect();
        let port = self.plan.receive.port();
        let changes = changes.into_iter().map(|place| route(place, port));
        self.publish(changes.collect());
        self.follow(touched).await
    }

    /// First who may send, then where to send.
    fn publish(&mut self, table_changes: Vec<Change>) {
        let table = self.routes.current().with(table_changes);
        if let Some(dataplane) = &mut self.dataplane {
            dataplane.admit(&table);
        }
        self.routes.publish(table);
    }

    const fn overlay_network(&self) -> OverlayNetwork {
        let subnet = self.plan.subnet;
        OverlayNetwork {
            network: self.plan.network,
            device: self.ifindex,
            blackhole: if self.plan.blackhole {
                Some(subnet)
            } else {
                None
            },
        }
    }

    async fn reconcile_routes(&mut self) -> Result<RouteReport, Failure> {
        let overlay = self.overlay_network();
        let address = |subnet| self.peers.reached_at(subnet);
        Ok(self
            .peer_routes
            .reconcile(&self.netlink, overlay, address)
            .await?)
    }

    /// Another MTU for the device, from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_mtu(&mut self, mtu: u16) -> Result<(), Failure> {
        let settings = DeviceSettings {
            mtu: u32::from(mtu),
            ..self.plan.device_settings()
        };
        link::configure(&self.netlink, self.ifindex, settings).await?;
        // From here on every look sees to it.
        self.plan.mtu = mtu;
        if let Some(dataplane) = &self.dataplane {
            dataplane.set_mtu(mtu);
        }
        Ok(())
    }

    /// This host has another address, or has it at another interface: tunnels come from it, and
    /// go to it.
    ///
    /// # Errors
    /// As [`Overlay::restore`], which can be tried again.
    pub async fn set_source(&mut self, source: Ipv4Addr, interface: u32) -> Result<(), Failure> {
        if let Some(only) = &mut self.plan.guard.interface {
            *only = interface;
        }
        if !self.plan.receive.ip().is_unspecified() {
            self.plan.receive.set_ip(source);
        }
        self.plan.source = source;
        self.restore().await
    }

    /// Lets strangers come as far as the packet loop, as long as somebody captures there.
    pub fn follow_captures(&mut self) {
        let shown = self.plan.taps.watch_the_socket();
        if let Some(dataplane) = &mut self.dataplane {
            dataplane.show_strangers(shown, &self.routes.current());
        }
    }

    /// What the overlay is made of.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The packet loop, where it runs.
    #[must_use]
    pub const fn dataplane(&self) -> Option<&Dataplane> {
        self.dataplane.as_ref()
    }

    /// Index of the device.
    #[must_use]
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// The route table of this moment.
    #[must_use]
    pub fn table(&self) -> Arc<RouteTable> {
        self.routes.current()
    }

    /// The route table as it is published, now and later.
    #[must_use]
    pub const fn routes(&self) -> &Routes {
        &self.routes
    }

    /// How the kernel sends to a peer's subnet.
    #[must_use]
    pub fn next_hop(&self, subnet: Ipv4Net) -> Option<NextHop> {
        self.peer_routes.get(subnet)
    }

    /// Whether the kernel's routes should be looked at soon.
    #[must_use]
    pub const fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// Turns of each worker so far.
    #[must_use]
    pub fn progress(&self) -> Vec<u64> {
        let progress = self.dataplane.as_ref().map(Dataplane::progress);
        progress.unwrap_or_default()
    }

    /// Number of peers that packets are sent to.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.peers.reached().len()
    }

    /// Peers that nothing is sent to, because it would come back: subnet, public address,
    /// and why.
    pub fn looping(&self) -> impl Iterator<Item = (Ipv4Net, Ipv4Addr, Loop)> {
        self.peers.looping()
    }

    /// All peers, and what passed between each and this host since it came, or the packet
    /// loop started.
    #[must_use]
    pub fn peer_totals(&self) -> Vec<(PeerRecord, PeerTotals)> {
        let dataplane = self.dataplane.as_ref();
        let counted = |id| dataplane.map(|it| it.peer_totals(id)).unwrap_or_default();
        self.peers.totals(counted).collect()
    }

    /// Counters of the packet loop, where it runs.
    #[must_use]
    pub fn totals(&self) -> Option<Totals> {
        self.dataplane.as_ref().map(Dataplane::totals)
    }

    /// Stops the packet loop. The device and its routes go with it, unless they are kept.
    pub fn stop(mut self) {
        if let Some(mut dataplane) = self.dataplane.take() {
            dataplane.stop();
        }
    }
}

/// Tells the packet loop which addresses are this host's. Where the kernel does not say, those
/// of the last time are.
async fn note_own_addresses(netlink: &Netlink, guard: &Guard) {
    match netlink.addresses(None).await {
        Ok(addresses) => guard.own.set(addresses.iter().filter_map(|entry| {
            let IpAddr::V4(address) = entry.address else {
                return None;
            };
            Some(address)
        })),
        Err(error) => tracing::debug!(event = "addresses_unseen", %error, "looking again soon"),
    }
}

/// Where a new or changed peer's datagrams go.
const fn address(change: &PeerChange) -> Option<Ipv4Addr> {
    match change {
        PeerChange::Added(peer) | PeerChange::Updated { new: peer, .. } => Some(peer.public_ip),
        PeerChange::Removed(_) => None,
    }
}

fn route((subnet, peer): Place, port: u16) -> Change {
    let peer = peer.and_then(|(peer, id)| {
        let endpoint = SocketAddrV4::new(peer.public_ip, port);
        Peer::new(endpoint, peer.vxlan.vtep_mac, id)
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
