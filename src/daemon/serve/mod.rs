//! A daemon that has said READY: what it does from then on.

mod device_repair;
mod host_check;
pub(crate) mod mtu;
pub(crate) mod overlay;
mod peer_routes;
mod peers;
pub(crate) mod privileges;
pub(crate) mod repairs;
pub(crate) mod rules;
pub(crate) mod suspend;
pub(crate) mod underlay;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::mtu::BridgeMtus;
use self::overlay::Overlay;
use self::repairs::{DeviceRepair, Repairs};
use self::rules::InstalledRules;
use self::suspend::SuspendDetector;
use self::underlay::Underlay;
use super::api::capture::Captures;
use super::api::control::PendingRequest;
use super::api::health::Readiness;
use super::instance::InstanceLock;
use super::notify::{Notifier, Watchdog};
use super::probes::{Probes, Target};
use super::sleep;
use super::state::files::Files;
use super::state::offline_cache::CacheWriter;
use super::state::state_file::State;
use crate::control::Phase;
use crate::dataplane::DeviceGone;
use crate::host::netlink::{Changes, Netlink};
use crate::host::routes::NextHop;
use crate::subnet::config::NetworkConfig;
use crate::subnet::lease::LeaseAttrs;
use crate::subnet::manager::{self, PeerChange};
use crate::subnet::store::Store;
use crate::subnet::validate::PeerRecord;

/// Longest pause between two checks of device, address, routes and underlay.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Shortest pause between two checks: each reads all routes.
const MIN_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// From a change on the host to the check: changes come in bursts.
const SETTLE_DELAY: Duration = Duration::from_millis(250);
/// From a change of the peers to the update of the probes and the service manager.
const REPORT_DELAY: Duration = Duration::from_millis(250);
/// Peer changes that are applied at once.
const MAX_CHANGES: usize = 1024;

/// Everything that runs.
pub(crate) struct Serving {
    pub(crate) config: Arc<NetworkConfig>,
    pub(crate) netlink: Netlink,
    pub(crate) overlay: Overlay,
    pub(crate) manager: manager::Running,
    pub(crate) manager_stop: CancellationToken,
    pub(crate) device_gone: mpsc::UnboundedReceiver<DeviceGone>,
    pub(crate) underlay: Underlay,
    /// The content of our lease.
    pub(crate) attrs: LeaseAttrs,
    /// The same, until the manager has taken it for writing.
    pub(crate) unpublished: Option<LeaseAttrs>,
    pub(crate) files: Files,
    pub(crate) state: State,
    pub(crate) mtu: u16,
    /// The kernel's notifications; without them the host is checked every [`CHECK_INTERVAL`] only.
    pub(crate) changes: Option<Changes>,
    pub(crate) started: Instant,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) probes: Probes,
    pub(crate) received: BTreeMap<Ipv4Net, Received>,
    pub(crate) notifier: Notifier,
    pub(crate) watchdog: Watchdog,
    pub(crate) bridge_mtus: BridgeMtus,
    pub(crate) readiness: Readiness,
    pub(crate) captures: Captures,
    pub(crate) offline_cache: CacheWriter,
    pub(crate) suspend_detector: SuspendDetector,
    pub(crate) timers: Timers,
    pub(crate) repairs: Repairs,
    /// The device is gone, and being rebuilt.
    pub(crate) device_repair: Option<DeviceRepair>,
    pub(crate) _rules: InstalledRules,
    pub(crate) _lock: InstanceLock,
}

/// Packets received from a peer by the last check, and when there were more than before.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Received {
    packets: u64,
    pub(crate) last: Option<Instant>,
}

/// When to do what can wait a little.
#[derive(Debug)]
pub(crate) struct Timers {
    /// The next check of the host, and the last one.
    check: Instant,
    checked: Option<Instant>,
    /// The update of the probes and the service manager.
    report: Option<Instant>,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            check: Instant::now(),
            checked: None,
            report: None,
        }
    }
}

impl Timers {
    fn check_soon(&mut self) {
        let earliest = Instant::now() + SETTLE_DELAY;
        let earliest = match self.checked {
            Some(checked) => earliest.max(checked + MIN_CHECK_INTERVAL),
            None => earliest,
        };
        self.check = self.check.min(earliest);
    }

    fn report_within(&mut self, delay: Duration) {
        self.report.get_or_insert(Instant::now() + delay);
    }
}

/// What the main loop reacts to.
enum Event {
    Stop,
    PeersChanged(Vec<PeerChange>),
    Request(PendingRequest),
    /// A capture began or ended.
    CapturesChanged,
    HostChanged,
    CheckDue,
    CacheWriteDue,
    /// The datastore answers again.
    BackOnline,
    ReportDue,
    DeviceGone(DeviceGone),
    RebuildDue,
    /// The manager has taken what our lease is to say.
    Published,
}

impl Serving {
    /// Serves until `stop` is cancelled.
    pub(crate) async fn serve(
        mut self,
        stop: CancellationToken,
        requests: &mut mpsc::Receiver<PendingRequest>,
    ) {
        loop {
            match self.next_event(&stop, requests).await {
                Event::Stop => break,
                Event::PeersChanged(changes) => self.apply(changes).await,
                Event::Request(pending) => {
                    // The client may be gone.
                    let _ = pending.respond.send(self.answer(pending.request).await);
                }
                Event::CapturesChanged => self.overlay.follow_captures(),
                Event::HostChanged => self.timers.check_soon(),
                Event::CheckDue => self.check_host().await,
                Event::CacheWriteDue => {
                    let (silence, peers) = (self.datastore_silence(), self.peer_records());
                    self.offline_cache
                        .write(self.state.public_ip, silence, peers);
                }
                Event::BackOnline => {
                    self.offline_cache.back_online(&self.store);
                    self.timers.report_within(Duration::ZERO);
                }
                Event::ReportDue => {
                    self.timers.report = None;
                    self.update_probes();
                    self.report_status();
                }
                Event::DeviceGone(gone) => self.device_gone(&gone),
                Event::RebuildDue => self.rebuild_device().await,
                Event::Published => self.unpublished = None,
            }
        }
        self.stop().await;
    }

    async fn next_event(
        &mut self,
        stop: &CancellationToken,
        requests: &mut mpsc::Receiver<PendingRequest>,
    ) -> Event {
        let is_offline = self.offline_cache.offline_age().is_some();
        let rebuild = self.device_repair.as_ref().map(DeviceRepair::due);
        tokio::select! {
            () = stop.cancelled() => Event::Stop,
            Some(changes) = self.manager.changes.recv() => Event::PeersChanged(changes),
            Some(pending) = requests.recv() => Event::Request(pending),
            () = self.captures.changed() => Event::CapturesChanged,
            () = host_changed(self.changes.as_ref()) => Event::HostChanged,
            () = sleep::until(Some(self.timers.check)) => Event::CheckDue,
            () = sleep::until(self.offline_cache.due()) => Event::CacheWriteDue,
            Ok(()) = self.manager.last_contact.changed(), if is_offline => Event::BackOnline,
            () = sleep::until(self.timers.report) => Event::ReportDue,
            Some(gone) = self.device_gone.recv() => Event::DeviceGone(gone),
            () = sleep::until(rebuild) => Event::RebuildDue,
            // The manager may be waiting for the datastore, or for us to take its changes.
            () = publish(&self.manager.republish, self.unpublished.clone()) => Event::Published,
        }
    }

    /// Applies these changes of the peers, and all that are waiting.
    async fn apply(&mut self, mut changes: Vec<PeerChange>) {
        while changes.len() < MAX_CHANGES
            && let Ok(more) = self.manager.changes.try_recv()
        {
            changes.extend(more);
        }
        if let Err(error) = self.overlay.apply(&changes).await {
            tracing::error!(event = "routes_failed", %error, "cannot set the kernel's routes");
        }
        if self.overlay.routes_in_doubt() {
            self.timers.check_soon();
        }
        self.timers.report_within(REPORT_DELAY);
        self.offline_cache.changed(Instant::now());
    }

    /// Gives the probes the peers that packets are sent to.
    pub(crate) fn update_probes(&self) {
        let peers = self.overlay.peer_totals();
        let targets = peers.iter().filter_map(|(peer, _)| {
            let next_hop = self.overlay.next_hop(peer.subnet)?;
            Some(Target::new(peer, next_hop != NextHop::Tunnel))
        });
        self.probes.set_peers(&targets.collect::<Vec<_>>());
    }

    /// Time since the datastore's last answer.
    pub(crate) fn datastore_silence(&self) -> Duration {
        self.manager.last_contact.borrow().elapsed()
    }

    fn peer_records(&self) -> Vec<PeerRecord> {
        let peers = self.overlay.peer_totals().into_iter();
        peers.map(|(peer, _)| peer).collect()
    }

    pub(crate) fn phase(&self) -> Phase {
        match &self.device_repair {
            Some(repair) => Phase::Other(format!("rebuilding the device: {}", repair.error())),
            None => Phase::Serving,
        }
    }

    /// Sends the line for `systemctl status`.
    fn report_status(&self) {
        let (subnet, peers) = (self.state.subnet, self.overlay.peers());
        let offline = self.offline_cache.offline_age();
        let text = match (self.phase(), offline, &*self.manager.own.borrow()) {
            (Phase::Serving, None, manager::OwnState::Held) => {
                format!("serving {subnet}, {peers} peers")
            }
            (Phase::Serving, None, _) => {
                format!("serving {subnet}, {peers} peers; our lease cannot be renewed, see the log")
            }
            (Phase::Serving, Some(age), _) => format!(
                "serving {subnet}, {peers} peers as of {} s ago; the datastore does not answer",
                age.as_secs()
            ),
            (phase, ..) => phase.to_string(),
        };
        self.notifier.status(&text);
    }

    async fn stop(self) {
        self.notifier.stopping();
        self.manager_stop.cancel();
        if let Some(totals) = self.overlay.totals() {
            tracing::info!(event = "stop", counters = %totals, "stopping; the lease stays ours until it expires");
        }
        let (silence, peers) = (self.datastore_silence(), self.peer_records());
        self.overlay.stop();
        self.offline_cache
            .finish(self.state.public_ip, silence, peers)
            .await;
        let _ = self.manager.task.await;
        tracing::info!(event = "stopped", "Exiting cleanly...");
    }
}

async fn host_changed(changes: Option<&Changes>) {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

/// Hands the lease's new content to the manager, as soon as it has room.
async fn publish(to: &mpsc::Sender<LeaseAttrs>, attrs: Option<LeaseAttrs>) {
    match attrs {
        // The manager ends only with us.
        Some(attrs) => to.send(attrs).await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}
