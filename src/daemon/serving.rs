//! A daemon that has said READY: what it does from then on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::capture::Captures;
use super::control::Question;
use super::files::Files;
use super::follow::Underlay;
use super::instance::InstanceLock;
use super::lifecycle::Patience;
use super::mended::Mended;
use super::notify::{self, Watchdog};
use super::overlay::Overlay;
use super::probes::Probes;
use super::rules::RulesKept;
use super::state_file::State;
use crate::dataplane::DeviceGone;
use crate::host::interface::ExternalInterface;
use crate::host::netlink::{Changes, Netlink};
use crate::subnet::config::NetworkConfig;
use crate::subnet::lease::LeaseAttrs;
use crate::subnet::manager;
use crate::subnet::store::Store;

/// Pause between two looks at device, address, routes and underlay.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// After a change on the host, so long until the look at it: changes come in bursts, and our
/// own are among them.
const SETTLE: Duration = Duration::from_millis(250);

/// Everything that runs.
pub struct Serving {
    pub(super) config: Arc<NetworkConfig>,
    pub(super) netlink: Netlink,
    pub(super) overlay: Overlay,
    pub(super) manager: manager::Running,
    pub(super) manager_stop: CancellationToken,
    pub(super) device_gone: mpsc::UnboundedReceiver<DeviceGone>,
    pub(super) underlay: Underlay,
    /// What our lease says.
    pub(super) attrs: LeaseAttrs,
    pub(super) files: Files,
    pub(super) state: State,
    pub(super) mtu: u16,
    /// What the kernel tells; without it, the host is looked at every [`LOOK_EVERY`] only.
    pub(super) changes: Option<Changes>,
    pub(super) started: Instant,
    pub(super) store: Arc<dyn Store>,
    pub(super) probes: Probes,
    /// What came from each peer, and when.
    pub(super) seen: BTreeMap<Ipv4Net, Seen>,
    pub(super) watchdog: Watchdog,
    pub(super) captures: Captures,
    pub(super) _rules: RulesKept,
    pub(super) _lock: InstanceLock,
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
    pub(super) last: Option<Instant>,
}

impl Serving {
    /// Serves until `stop` is cancelled.
    pub async fn serve(
        mut self,
        stop: CancellationToken,
        questions: &mut mpsc::Receiver<Question>,
    ) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(changes) = self.manager.changes.recv() => {
                    let port = self.config.backend.port;
                    if let Err(error) = self.overlay.apply(&changes, port).await {
                        tracing::error!(event = "routes_failed", %error, "cannot set the kernel's routes");
                    }
                    self.tell_probes();
                    notify::status(&self.in_short());
                }
                Some(question) = questions.recv() => {
                    // Who asked may have gone.
                    let _ = question.reply.send(self.answer(question.ask).await);
                }
                () = self.captures.changed() => self.overlay.follow_captures(),
                _ = look.tick() => self.look().await,
                () = something_changed(self.changes.as_ref()) => {
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = tokio::time::sleep(SETTLE) => self.look().await,
                    }
                }
                Some(gone) = self.device_gone.recv() => {
                    tracing::error!(event = "device_gone", error = %gone, "making the device anew");
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = self.restore() => {}
                    }
                }
            }
        }
        self.stop().await;
    }

    /// One line for `systemctl status`.
    fn in_short(&self) -> String {
        let (subnet, peers) = (self.state.subnet, self.overlay.peers());
        match &*self.manager.own.borrow() {
            manager::OwnState::Held => format!("serving {subnet}, {peers} peers"),
            _ => {
                format!("serving {subnet}, {peers} peers; our lease cannot be renewed, see the log")
            }
        }
    }

    /// Compares the host with what it should be, and mends it.
    async fn look(&mut self) {
        if let Err(error) = self.overlay.reconcile().await {
            tracing::debug!(event = "reconcile_failed", %error, "looking again soon");
        }
        match self.underlay.look(&self.netlink).await {
            Ok(Some(before)) => self.follow(before).await,
            Ok(None) => {}
            Err(error) => tracing::debug!(event = "underlay_unseen", %error, "looking again soon"),
        }
        self.note_seen();
        self.watchdog.feed(&self.overlay.progress(), Instant::now());
        if self.manager.own.has_changed().unwrap_or(false) {
            self.manager.own.mark_unchanged();
            notify::status(&self.in_short());
        }
    }

    fn note_seen(&mut self) {
        let totals = self.overlay.peer_totals();
        self.seen
            .retain(|subnet, _| totals.iter().any(|(peer, _)| peer.subnet == *subnet));
        let now = Instant::now();
        for (peer, counted) in totals {
            let seen = self.seen.entry(peer.subnet).or_default();
            if counted.in_packets != seen.packets {
                seen.packets = counted.in_packets;
                seen.last = (counted.in_packets > 0).then_some(now);
            }
        }
    }

    /// Tells the probes whom there is to ask.
    pub(super) fn tell_probes(&self) {
        let peers = self.overlay.peer_totals();
        self.probes
            .set_peers(peers.into_iter().map(|(peer, _)| peer.subnet));
    }

    /// The interface to the other hosts is not what it was.
    async fn follow(&mut self, before: ExternalInterface) {
        let now = self.underlay.current().clone();
        if (now.address, now.public_ip) != (before.address, before.public_ip) {
            self.move_to(&before, &now).await;
        }
        match super::follow::device_mtu(&self.config, &now) {
            Ok(mtu) if mtu != self.mtu => self.change_mtu(mtu, &now).await,
            Ok(_) => {}
            Err(error) => {
                let device_mtu = self.mtu;
                tracing::error!(event = "mtu", %error, device_mtu, "the device keeps its MTU");
            }
        }
    }

    /// Tunnels come from another address, and the lease has to say so.
    async fn move_to(&mut self, before: &ExternalInterface, now: &ExternalInterface) {
        tracing::warn!(
            event = "address_changed", old = %before.address, new = %now.address,
            public_ip = %now.public_ip, interface = now.name,
            "this host has another address: publishing it, and sending from it"
        );
        if let Err(error) = self.overlay.set_source(now.address).await {
            tracing::error!(event = "restore_failed", %error, "trying again");
            self.restore().await;
        }
        if self.attrs.public_ip != now.public_ip {
            self.attrs.public_ip = now.public_ip;
            self.state.public_ip = now.public_ip;
            // The manager ends only with us.
            let _ = self.manager.republish.send(self.attrs.clone()).await;
            if let Err(error) = self.files.save_state(&self.state) {
                tracing::error!(event = "state_file", %error, "the next start will not know our address");
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
        super::follow::warn_of_larger_bridges(&self.netlink, self.state.subnet, mtu).await;
    }

    async fn restore(&mut self) {
        let mut patience = Patience::default();
        while let Err(error) = self.overlay.restore().await {
            patience
                .wait(|| tracing::error!(event = "restore_failed", %error, "trying again"))
                .await;
        }
        // Every worker has reported the same loss.
        while self.device_gone.try_recv().is_ok() {}
        Mended::Device.note();
        tracing::info!(event = "device_restored", "device and packet loop are back");
    }

    async fn stop(self) {
        notify::stopping();
        self.manager_stop.cancel();
        if let Some(totals) = self.overlay.totals() {
            tracing::info!(event = "stop", counters = %totals, "stopping; the lease stays ours until it expires");
        }
        self.overlay.stop();
        let _ = self.manager.task.await;
        tracing::info!(event = "stopped", "Exiting cleanly...");
    }
}
