//! `uvxlan status`: what the daemon knows.

use std::time::Instant;

use crate::control::{
    BatchStatus, CounterKind, CounterStatus, DatastoreStatus, Histogram, LeaseState, NodeStatus,
    PacketLoopStatus, PeerCheck, PeerRoute, PeerState, PeerStatus, Phase, ProbeMethod,
    RefusedRecord, Request, Response, Status,
};
use crate::daemon::notify::Notifier;
use crate::daemon::probes::{Health, Method};
use crate::daemon::serve::Serving;
use crate::dataplane::counters::{Call, Counter, Kind, Totals, largest_of_size};
use crate::dataplane::ingress_policy::Enforcement;
use crate::dataplane::peer_counters::PeerTotals;
use crate::host::routes::NextHop;
use crate::subnet::manager::OwnState;
use crate::subnet::store::Store;
use crate::subnet::validate::PeerRecord;

/// The status of a daemon that does not serve yet.
pub(crate) fn starting(started: Instant, store: &dyn Store, notifier: &Notifier) -> Status {
    let waiting = notifier.last_status();
    Status {
        phase: waiting.map_or(Phase::Starting, Phase::Other),
        datastore: DatastoreStatus {
            place: store.describe(),
            ..DatastoreStatus::default()
        },
        ..process(started)
    }
}

fn process(started: Instant) -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime_seconds: started.elapsed().as_secs(),
        ..Status::default()
    }
}

impl Serving {
    pub(crate) async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Status => Response::Status(Box::new(self.status())),
            Request::Trace { to } => Response::Trace(self.trace(to).await),
            // The control socket begins captures itself.
            Request::Capture(_) => {
                Response::Error("a capture needs a connection of its own".into())
            }
        }
    }

    fn status(&self) -> Status {
        let (refused, refused_total) = self.manager.view.with(|set| {
            let refused: Vec<_> = set
                .refused()
                .map(|refused| RefusedRecord {
                    name: refused.name.clone(),
                    reason: refused.reason.label().into(),
                    text: refused.reason.text().into(),
                    rival: refused.rival.clone(),
                })
                .collect();
            let total = set.refused_by_reason().iter();
            let total: Vec<_> = total
                .map(|(reason, count)| (reason.label().to_owned(), *count))
                .collect();
            (refused, total)
        });
        Status {
            phase: self.phase(),
            node: Some(self.node()),
            datastore: self.datastore(),
            packet_loop: self.packet_loop(),
            peers: self.peers(),
            refused,
            refused_total,
            counters: self.counters(),
            round_trips: self.probes.round_trips(),
            repairs: self.repairs.by_name(),
            ..process(self.started)
        }
    }

    fn node(&self) -> NodeStatus {
        let external = self.underlay.current();
        let vtep = self.overlay.options().vtep;
        NodeStatus {
            subnet: self.state.subnet,
            network: self.state.network,
            public_ip: external.public_ip,
            interface: external.name.clone(),
            interface_mtu: external.mtu,
            device: self.overlay.settings().device.clone(),
            mtu: self.mtu,
            vni: vtep.vni.get(),
            port: self.config.backend.port,
            vtep_mac: vtep.mac.to_string(),
        }
    }

    fn datastore(&self) -> DatastoreStatus {
        let (lease, detail) = match &*self.manager.own.borrow() {
            OwnState::Held => (LeaseState::Held, None),
            OwnState::Unconfirmed(reason) => (LeaseState::Unconfirmed, Some(reason.clone())),
            OwnState::TakenBy(holder) => (LeaseState::Taken, Some(format!("by {holder}"))),
            OwnState::Contended => (
                LeaseState::Contended,
                Some("another daemon or machine writes it".into()),
            ),
            OwnState::Unreadable => (LeaseState::Unreadable, Some("somebody overwrote it".into())),
        };
        let cache_age = self.offline_cache.offline_age().map(|age| age.as_secs());
        let counts = self.manager.counters.read();
        DatastoreStatus {
            place: self.store.describe(),
            lease,
            detail,
            heard_seconds_ago: cache_age
                .is_none()
                .then(|| self.datastore_silence().as_secs()),
            memory_seconds: cache_age,
            lease_ends_in_seconds: counts.left.map(|left| left.as_secs()),
            renewals: counts.renewals,
            renewals_failed: counts.renewals_failed,
            resyncs: vec![
                ("watch".into(), counts.resyncs),
                ("missing-peers".into(), counts.lists_read_again),
            ],
        }
    }

    fn packet_loop(&self) -> Option<PacketLoopStatus> {
        let dataplane = self.overlay.dataplane()?;
        let (offloads, lacking) = dataplane.offloads();
        let lacking = lacking
            .iter()
            .map(|part| format!("{}: {}", part.part, part.reason));
        Some(PacketLoopStatus {
            workers: dataplane.workers(),
            offloads: offloads.to_string(),
            lacking: lacking.collect(),
            peer_check: match self.overlay.options().ingress_policy.mode {
                Enforcement::Enforce => PeerCheck::Enforce,
                Enforcement::Log => PeerCheck::Log,
                Enforcement::Off => PeerCheck::Off,
            },
            batches: batches(&dataplane.totals()),
        })
    }

    fn peers(&self) -> Vec<PeerStatus> {
        let totals = self.overlay.peer_totals();
        let peers = totals
            .iter()
            .map(|(peer, counted)| self.peer(peer, counted));
        peers.collect()
    }

    fn peer(&self, peer: &PeerRecord, counted: &PeerTotals) -> PeerStatus {
        let blocked = self
            .overlay
            .looping()
            .find(|(subnet, ..)| *subnet == peer.subnet);
        let route = match (&blocked, self.overlay.next_hop(peer.subnet)) {
            (Some((_, _, reason)), _) => PeerRoute::Other(format!("none: {reason}")),
            (None, Some(NextHop::Direct { .. })) => PeerRoute::Direct,
            (None, _) => PeerRoute::Tunnel,
        };
        let health = self.probes.health(peer.subnet);
        let loss = health.and_then(|health| health.loss);
        let seen = self.received.get(&peer.subnet).and_then(|it| it.last);
        let seen = seen.max(health.and_then(|health| health.heard));
        let seen = seen.map(|last| last.elapsed().as_secs());
        let state = match blocked {
            Some(_) => PeerState::Blocked,
            None => state(health, seen, self.offline_cache.offline_age().is_some()),
        };
        PeerStatus {
            subnet: peer.subnet,
            public_ip: peer.public_ip,
            vtep_mac: peer.vxlan.vtep_mac.to_string(),
            route,
            state,
            probe: health.map(|health| match health.method {
                Method::InBand => ProbeMethod::InBand,
                Method::Echo => ProbeMethod::Icmp,
            }),
            rtt_us: health
                .and_then(|health| health.rtt)
                .map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            loss_percent: loss.map(|loss| loss.percent),
            loss_out_percent: loss.and_then(|loss| loss.out_percent),
            loss_in_percent: loss.and_then(|loss| loss.in_percent),
            path_mtu: health.and_then(|health| health.path_mtu),
            seen_seconds_ago: seen,
            out_packets: counted.out_packets,
            out_bytes: counted.out_bytes,
            in_packets: counted.in_packets,
            in_bytes: counted.in_bytes,
        }
    }

    fn counters(&self) -> Vec<CounterStatus> {
        let Some(totals) = self.overlay.totals() else {
            return Vec::new();
        };
        let counters = Counter::ALL.iter().map(|counter| CounterStatus {
            name: counter.label().into(),
            kind: match counter.kind() {
                Kind::Packets => CounterKind::Packets,
                Kind::DropOut => CounterKind::DropOut,
                Kind::DropIn => CounterKind::DropIn,
                Kind::Bytes => CounterKind::Bytes,
                Kind::Event => CounterKind::Event,
            },
            value: totals.get(*counter),
        });
        counters.collect()
    }
}

fn batches(totals: &Totals) -> Vec<BatchStatus> {
    let batches = Call::ALL.into_iter().map(|call| {
        let moved = match call {
            Call::Send => Counter::Sent,
            Call::Receive => Counter::UdpRead,
            Call::Write => Counter::Delivered,
        };
        let counts = totals.batches(call).iter().enumerate();
        BatchStatus {
            call: call.label().into(),
            sizes: Histogram {
                sum: totals.get(moved) as f64,
                counts: counts
                    .map(|(size, count)| (largest_of_size(size).map(|most| most as f64), *count))
                    .collect(),
            },
        }
    });
    batches.collect()
}

/// The state of a peer that packets are sent to, by its replies to probes, the seconds since a
/// packet came from it, and whether it is known from the offline cache only.
fn state(health: Option<Health>, seen: Option<u64>, is_cached: bool) -> PeerState {
    let silent = health.is_some_and(|health| health.is_silent());
    match seen {
        _ if !silent && health.is_some_and(|health| health.rtt.is_some()) => PeerState::Ok,
        // It is up and does not reply: what we send does not arrive.
        Some(ago) if silent && ago <= 10 => PeerState::OneWay,
        _ if silent => PeerState::Silent,
        Some(ago) if ago <= 60 => PeerState::Ok,
        _ if is_cached => PeerState::Stale,
        _ => PeerState::Unknown,
    }
}
