//! A daemon that has said READY: what it does from then on.

pub mod mtu;
pub mod overlay;
pub mod peer_routes;
pub mod peers;
pub mod privileges;
pub mod repairs;
pub mod rules;
pub mod suspend;
pub mod underlay;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::notify::{Notifier, Watchdog};
use super::probes::{Probes, Target};
use super::sleep;
use crate::control::Phase;
use crate::daemon::api::capture::Captures;
use crate::daemon::api::control::PendingRequest;
use crate::daemon::api::health::Readiness;
use crate::daemon::backoff::Backoff;
use crate::daemon::instance::InstanceLock;
use crate::daemon::serve::mtu::{BridgeMtus, device_mtu};
use crate::daemon::serve::overlay::Overlay;
use crate::daemon::serve::repairs::{Repaired, Repairs};
use crate::daemon::serve::rules::InstalledRules;
use crate::daemon::serve::suspend::SuspendDetector;
use crate::daemon::serve::underlay::Underlay;
use crate::daemon::state::files::Files;
use crate::daemon::state::offline_cache::CacheWriter;
use crate::daemon::state::state_file::State;
use crate::dataplane::DeviceGone;
use crate::host::interface::ExternalInterface;
use crate::host::netlink::{Changes, Netlink};
use crate::host::routes::NextHop;
use crate::subnet::config::NetworkConfig;
use crate::subnet::lease::LeaseAttrs;
use crate::subnet::manager::{self, PeerChange};
use crate::subnet::store::Store;
use crate::subnet::validate::PeerRecord;

/// Pause between two looks at device, address, routes and underlay.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// After a change on the host, so long until the look at it: changes come in bursts.
const SETTLE: Duration = Duration::from_millis(250);

/// Whatever changes on the host, between two looks is so much time: they read all routes.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// After a change among the peers, so long until probes and the service manager hear of it.
const TELL_AFTER: Duration = Duration::from_millis(250);

/// Changes that are taken in at once.
const AT_ONCE: usize = 1024;

/// Everything that runs.
pub struct Serving {
    pub(crate) config: Arc<NetworkConfig>,
    pub(crate) netlink: Netlink,
    pub(crate) overlay: Overlay,
    pub(crate) manager: manager::Running,
    pub(crate) manager_stop: CancellationToken,
    pub(crate) device_gone: mpsc::UnboundedReceiver<DeviceGone>,
    pub(crate) underlay: Underlay,
    /// What our lease says.
    pub(crate) attrs: LeaseAttrs,
    pub(crate) files: Files,
    pub(crate) state: State,
    pub(crate) mtu: u16,
    /// What the kernel tells; without it, the host is looked at every [`LOOK_EVERY`] only.
    pub(crate) changes: Option<Changes>,
    pub(crate) started: Instant,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) probes: Probes,
    /// What came from each peer, and when.
    pub(crate) seen: BTreeMap<Ipv4Net, Seen>,
    pub(crate) notifier: Notifier,
    pub(crate) watchdog: Watchdog,
    pub(crate) repairs: Repairs,
    pub(crate) bridge_mtus: BridgeMtus,
    pub(crate) readiness: Readiness,
    pub(crate) captures: Captures,
    pub(crate) offline_cache: CacheWriter,
    pub(crate) suspend_detector: SuspendDetector,
    pub(crate) due: Due,
    /// What our lease is to say, until the manager has taken it.
    pub(crate) unpublished: Option<LeaseAttrs>,
    pub(crate) repair: Option<Repair>,
    pub(crate) _rules: InstalledRules,
    pub(crate) _lock: InstanceLock,
}

/// When the loop turns to what can wait a little.
#[derive(Debug, Default)]
pub struct Due {
    look: Option<Instant>,
    looked: Option<Instant>,
    tell: Option<Instant>,
}

impl Due {
    /// Something on the host has changed.
    fn look_soon(&mut self, now: Instant) {
        let earliest = self.looked.map_or(now, |looked| looked + LOOK_PAUSE);
        self.look.get_or_insert(earliest.max(now + SETTLE));
    }
}

/// A device that is gone, and the tries to have it back.
#[derive(Debug)]
pub struct Repair {
    due: Instant,
    backoff: Backoff,
    /// Why the last try failed.
    error: String,
}

impl Repair {
    fn new(error: String) -> Self {
        Self {
            due: Instant::now(),
            backoff: Backoff::default(),
            error,
        }
    }
}

/// Hands over what our lease is to say, as soon as there is room for it.
async fn publish(to: &mpsc::Sender<LeaseAttrs>, attrs: Option<LeaseAttrs>) {
    match attrs {
        // The manager ends only with us.
        Some(attrs) => to.send(attrs).await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}

async fn something_changed(changes: Option<&Changes>) {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

/// Packets that came from a peer until the last look, and when there were more than before.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    packets: u64,
    pub(crate) last: Option<Instant>,
}

impl Serving {
    /// Serves until `stop` is cancelled.
    pub async fn serve(
        mut self,
        stop: CancellationToken,
        requests: &mut mpsc::Receiver<PendingRequest>,
    ) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(changes) = self.manager.changes.recv() => self.take(changes).await,
                Some(pending) = requests.recv() => {
                    // The client may be gone.
                    let _ = pending.respond.send(self.answer(pending.request).await);
                }
                () = self.captures.changed() => self.overlay.follow_captures(),
                _ = look.tick() => self.look().await,
                () = something_changed(self.changes.as_ref()) => {
                    self.due.look_soon(Instant::now());
                }
                () = sleep::until(self.due.look) => self.look().await,
                () = sleep::until(self.offline_cache.due()) => {
                    let (heard, peers) = (self.heard(), self.records());
                    self.offline_cache.write(self.state.public_ip, heard, peers);
                }
                Ok(()) = self.manager.heard.changed(), if self.offline_cache.offline_age().is_some() => {
                    self.offline_cache.back_online(&self.store);
                    self.due.tell.get_or_insert(Instant::now());
                }
                () = sleep::until(self.due.tell) => {
                    self.due.tell = None;
                    self.tell_probes();
                    self.notifier.status(&self.in_short());
                }
                Some(gone) = self.device_gone.recv() => {
                    if self.repair.is_none() {
                        tracing::error!(event = "device_gone", error = %gone, "making the device anew");
                        self.begin_repair(gone.to_string());
                    }
                }
                () = sleep::until(self.repair.as_ref().map(|repair| repair.due)) => self.restore().await,
                // The manager may be waiting for the store, or for us to take its changes.
                () = publish(&self.manager.republish, self.unpublished.clone()) => {
                    self.unpublished = None;
                }
            }
        }
        self.stop().await;
    }

    /// Takes in what changed among the peers: all that is waiting, at once.
    async fn take(&mut self, mut changes: Vec<PeerChange>) {
        while changes.len() < AT_ONCE
            && let Ok(more) = self.manager.changes.try_recv()
        {
            changes.extend(more);
        }
        if let Err(error) = self.overlay.apply(&changes).await {
            tracing::error!(event = "routes_failed", %error, "cannot set the kernel's routes");
        }
        let now = Instant::now();
        if self.overlay.routes_in_doubt() {
            self.due.look_soon(now);
        }
        self.due.tell.get_or_insert(now + TELL_AFTER);
        self.offline_cache.changed(now);
    }

    /// How long ago the store last said something, as far as we lived then.
    pub(crate) fn heard(&self) -> Duration {
        self.manager.heard.borrow().elapsed()
    }

    fn records(&self) -> Vec<PeerRecord> {
        let peers = self.overlay.peer_totals().into_iter();
        peers.map(|(peer, _)| peer).collect()
    }

    pub(crate) fn phase(&self) -> Phase {
        match &self.repair {
            Some(repair) => Phase::Other(format!("making the device anew: {}", repair.error)),
            None => Phase::Serving,
        }
    }

    /// One line for `systemctl status`.
    fn in_short(&self) -> String {
        if self.repair.is_some() {
            return self.phase().to_string();
        }
        let (subnet, peers) = (self.state.subnet, self.overlay.peers());
        if let Some(age) = self.offline_cache.offline_age() {
            let seconds = age.as_secs();
            return format!(
                "serving {subnet}, {peers} peers as of {seconds} s ago; the datastore does not answer"
            );
        }
        match &*self.manager.own.borrow() {
            manager::OwnState::Held => format!("serving {subnet}, {peers} peers"),
            _ => {
                format!("serving {subnet}, {peers} peers; our lease cannot be renewed, see the log")
            }
        }
    }

    /// Compares the host with what it should be, and mends it.
    async fn look(&mut self) {
        self.due.look = None;
        if let Some(slept) = self.suspend_detector.since_last_call() {
            let seconds = slept.as_secs();
            tracing::warn!(
                event = "suspended",
                seconds,
                "this machine slept: renewing the lease"
            );
            // Its time went on without us.
            self.unpublished = Some(self.attrs.clone());
        }
        if self.repair.is_none()
            && let Err(error) = self.overlay.reconcile().await
        {
            tracing::warn!(event = "reconcile_failed", %error, "looking again soon");
        }
        match self.underlay.refresh(&self.netlink).await {
            Ok(before) => self.follow(before).await,
            Err(error) => {
                tracing::warn!(event = "underlay_unseen", %error, "looking again soon");
            }
        }
        let subnet = self.state.subnet;
        self.bridge_mtus
            .check(&self.netlink, subnet, self.mtu)
            .await;
        self.note_seen();
        // Next hops may have changed.
        self.tell_probes();
        let now = Instant::now();
        self.due.looked = Some(now);
        self.watchdog.feed(&self.overlay.progress(), now);
        if self.manager.own.has_changed().unwrap_or(false) {
            self.manager.own.mark_unchanged();
            self.notifier.status(&self.in_short());
        }
    }

    fn note_seen(&mut self) {
        let mut before = std::mem::take(&mut self.seen);
        let now = Instant::now();
        for (peer, counted) in self.overlay.peer_totals() {
            let mut seen = before.remove(&peer.subnet).unwrap_or_default();
            if counted.in_packets != seen.packets {
                seen.packets = counted.in_packets;
                seen.last = (counted.in_packets > 0).then_some(now);
            }
            self.seen.insert(peer.subnet, seen);
        }
    }

    /// Tells the probes whom there is to ask.
    pub(crate) fn tell_probes(&self) {
        let peers = self.overlay.peer_totals();
        let targets = peers.iter().filter_map(|(peer, _)| {
            // Without a next hop nothing is sent.
            let next_hop = self.overlay.next_hop(peer.subnet)?;
            Some(Target::new(peer, next_hop != NextHop::Tunnel))
        });
        self.probes.set_peers(&targets.collect::<Vec<_>>());
    }

    /// Follows the interface to the other hosts; `before` is what it was, where it is
    /// something else now.
    async fn follow(&mut self, before: Option<ExternalInterface>) {
        let now = self.underlay.current().clone();
        let is_new = before.is_some();
        if let Some(before) = before {
            if (now.address, now.public_ip) != (before.address, before.public_ip) {
                self.move_to(&before, &now).await;
            } else if now.index != before.index
                && self.overlay.options().ingress_policy.interface.is_some()
            {
                tracing::warn!(
                    event = "interface_changed",
                    old = before.name,
                    new = now.name,
                    "this host has its address at another interface: receiving there"
                );
                self.receive_at(&now).await;
            }
        }
        match device_mtu(&self.config, &now) {
            // Also where the last try failed.
            Ok(mtu) if mtu != self.mtu && self.repair.is_none() => self.change_mtu(mtu, &now).await,
            Err(error) if is_new => {
                let device_mtu = self.mtu;
                tracing::error!(event = "mtu", %error, device_mtu, "the device keeps its MTU");
            }
            _ => {}
        }
    }

    /// Tunnels come from another address, and the lease has to say so.
    async fn move_to(&mut self, before: &ExternalInterface, now: &ExternalInterface) {
        tracing::warn!(
            event = "address_changed", old = %before.address, new = %now.address,
            public_ip = %now.public_ip, interface = now.name,
            "this host has another address: publishing it, and sending from it"
        );
        self.receive_at(now).await;
        self.probes.set_source(now.address);
        if self.attrs.public_ip != now.public_ip {
            self.attrs.public_ip = now.public_ip;
            self.state.public_ip = now.public_ip;
            self.unpublished = Some(self.attrs.clone());
            self.offline_cache.changed(Instant::now());
            if let Err(error) = self.files.save_state(&self.state) {
                tracing::error!(event = "state_file", %error, "the next start will not know our address");
            }
        }
    }

    async fn receive_at(&mut self, now: &ExternalInterface) {
        match self.overlay.set_source(now.address, now.index).await {
            Ok(()) => self.restored(),
            Err(error) => {
                if self.repair.is_none() {
                    self.begin_repair(error.to_string());
                }
                self.failed_to_restore(&error);
            }
        }
    }

    async fn change_mtu(&mut self, mtu: u16, now: &ExternalInterface) {
        let (old, outer) = (self.mtu, now.mtu);
        if let Err(error) = self.overlay.set_mtu(mtu).await {
            tracing::error!(event = "mtu", old, new = mtu, %error, "cannot change the device's MTU");
            return;
        }
        self.mtu = mtu;
        self.probes.set_mtu(mtu);
        tracing::warn!(
            event = "mtu_changed",
            old,
            new = mtu,
            interface = now.name,
            interface_mtu = outer,
            "the device's MTU follows the interface; containers keep theirs until docker restarts \
             with the new one, and learn by ICMP meanwhile"
        );
        if let Err(error) = self.files.rewrite_subnet_file(&self.state, mtu) {
            tracing::error!(event = "subnet_file", %error, "the subnet file has the old MTU");
        }
    }

    /// From now on the device is to be had back, and nobody is told that we are ready.
    fn begin_repair(&mut self, error: String) {
        self.readiness.set_device(false);
        self.repair = Some(Repair::new(error));
    }

    /// One try to have device and packet loop back.
    async fn restore(&mut self) {
        if let Err(error) = self.overlay.restore().await {
            return self.failed_to_restore(&error);
        }
        self.restored();
    }

    /// Device and packet loop were just made anew.
    fn restored(&mut self) {
        // What workers have reported is of those before.
        while self.device_gone.try_recv().is_ok() {}
        if self.overlay.routes_in_doubt() {
            self.due.look_soon(Instant::now());
        }
        if self.repair.take().is_none() {
            return;
        }
        self.readiness.set_device(true);
        self.repairs.count(Repaired::Device);
        tracing::info!(event = "device_restored", "device and packet loop are back");
        self.notifier.status(&self.in_short());
    }

    fn failed_to_restore(&mut self, error: &Failure) {
        let Some(repair) = &mut self.repair else {
            return;
        };
        let (should_log, pause) = repair.backoff.next();
        repair.due = Instant::now() + pause;
        repair.error = error.to_string();
        if should_log {
            tracing::error!(event = "restore_failed", %error, "trying again");
        }
        self.notifier.status(&self.in_short());
    }

    async fn stop(self) {
        self.notifier.stopping();
        self.manager_stop.cancel();
        if let Some(totals) = self.overlay.totals() {
            tracing::info!(event = "stop", counters = %totals, "stopping; the lease stays ours until it expires");
        }
        let (heard, peers) = (self.heard(), self.records());
        self.overlay.stop();
        self.offline_cache
            .finish(self.state.public_ip, heard, peers)
            .await;
        let _ = self.manager.task.await;
        tracing::info!(event = "stopped", "Exiting cleanly...");
    }
}
