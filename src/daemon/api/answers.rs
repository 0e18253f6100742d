//! Answers of a daemon that serves: what it knows, put together for whoever asks.

use std::net::Ipv4Addr;
use std::time::Instant;

use crate::control::{
    Ask, BatchStatus, CounterStatus, DatastoreStatus, NodeStatus, PacketLoopStatus, PeerStatus,
    RefusedRecord, Reply, SizeCounts, Status, Step,
};
use crate::daemon::probes::Health;
use crate::daemon::serve::Serving;
use crate::daemon::serve::repairs;
use crate::dataplane::counters::{Call, Counter, Kind, Totals, largest_of_size};
use crate::dataplane::ingress_policy::Mode;
use crate::host::routes::NextHop;
use crate::subnet::key::SubnetKey;
use crate::subnet::manager::OwnState;
use crate::wire::{flow, ipv4};

/// Protocol number of ICMP.
const ICMP: u8 = 1;

/// A daemon that does not serve yet.
#[must_use]
pub fn starting(started: Instant, place: &str) -> Status {
    let waiting = crate::daemon::notify::last_status();
    Status {
        phase: if waiting.is_empty() {
            "starting".into()
        } else {
            waiting
        },
        datastore: DatastoreStatus {
            place: place.to_owned(),
            lease: "none".into(),
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
    /// Answers a question.
    pub async fn answer(&self, ask: Ask) -> Reply {
        match ask {
            Ask::Status => Reply::Status(Box::new(self.status())),
            Ask::Trace { to } => Reply::Trace(self.trace(to).await),
            // The control socket sees to it.
            Ask::Capture(_) => Reply::Error("a capture needs a connection of its own".into()),
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
            mended: repairs::counts(),
            ..process(self.started)
        }
    }

    fn node(&self) -> NodeStatus {
        let external = self.underlay.current();
        let plan = self.overlay.plan();
        NodeStatus {
            subnet: self.state.subnet,
            network: self.state.network,
            public_ip: external.public_ip,
            interface: external.name.clone(),
            interface_mtu: external.mtu,
            device: plan.device.clone(),
            mtu: self.mtu,
            vni: plan.vtep.vni.get(),
            port: self.config.backend.port,
            vtep_mac: plan.vtep.mac.to_string(),
        }
    }

    fn datastore(&self) -> DatastoreStatus {
        let (lease, detail) = match &*self.manager.own.borrow() {
            OwnState::Held => ("held", None),
            OwnState::Unconfirmed(reason) => ("unconfirmed", Some(reason.clone())),
            OwnState::TakenBy(holder) => ("taken", Some(format!("by {holder}"))),
            OwnState::Contended => (
                "contended",
                Some("another daemon or machine writes it".into()),
            ),
            OwnState::Unreadable => ("unreadable", Some("somebody overwrote it".into())),
        };
        let memory = self.memory.age_in_use().map(|age| age.as_secs());
        let counts = self.manager.books.counts();
        DatastoreStatus {
            place: self.store.describe(),
            lease: lease.into(),
            detail,
            heard_seconds_ago: memory.is_none().then(|| self.heard().as_secs()),
            memory_seconds: memory,
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
        let peer_check = match self.overlay.plan().guard.mode {
            Mode::Enforce => "enforce",
            Mode::Log => "log",
            Mode::Off => "off",
        };
        Some(PacketLoopStatus {
            workers: dataplane.workers(),
            offloads: offloads.to_string(),
            lacking: lacking.collect(),
            peer_check: peer_check.into(),
            batches: batches(&dataplane.totals()),
        })
    }

    fn peers(&self) -> Vec<PeerStatus> {
        let totals = self.overlay.peer_totals();
        let peers = totals.into_iter().map(|(peer, counted)| {
            let blocked = self
                .overlay
                .looping()
                .find(|(subnet, ..)| *subnet == peer.subnet);
            let way = match (&blocked, self.overlay.next_hop(peer.subnet)) {
                (Some((_, _, reason)), _) => format!("none: {reason}"),
                (None, Some(NextHop::Direct { .. })) => "direct".into(),
                (None, _) => "tunnel".into(),
            };
            let health = self.probes.health(peer.subnet);
            let loss = health.and_then(|health| health.loss);
            let seen = self.seen.get(&peer.subnet).and_then(|seen| seen.last);
            let seen = seen.max(health.and_then(|health| health.heard));
            let seen = seen.map(|last| last.elapsed().as_secs());
            let state = match blocked {
                Some(_) => "blocked",
                None => state(health, seen, self.memory.age_in_use().is_some()),
            };
            PeerStatus {
                subnet: peer.subnet,
                public_ip: peer.public_ip,
                vtep_mac: peer.vxlan.vtep_mac.to_string(),
                way,
                state: state.into(),
                probe: health.map(|health| health.means.label().into()),
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
        });
        peers.collect()
    }

    fn counters(&self) -> Vec<CounterStatus> {
        let Some(totals) = self.overlay.totals() else {
            return Vec::new();
        };
        let counters = Counter::ALL.iter().map(|counter| CounterStatus {
            name: counter.label().into(),
            kind: match counter.kind() {
                Kind::Packets => "packets",
                Kind::DropOut => "drop-out",
                Kind::DropIn => "drop-in",
                Kind::Bytes => "bytes",
                Kind::Event => "event",
            }
            .into(),
            value: totals.get(*counter),
        });
        counters.collect()
    }

    /// Follows a packet to `to` from the container's side to the wire, and one back.
    async fn trace(&self, to: Ipv4Addr) -> Vec<Step> {
        let (network, own) = (self.state.network, self.state.subnet);
        let mut steps = Vec::new();
        if own.contains(&to) {
            let text =
                format!("{to} is in our own subnet {own}: a container of this host, no tunnel");
            steps.push(Step::passed("overlay", text));
            steps.push(self.kernel_route(to, None).await);
            return steps;
        }
        if !network.contains(&to) {
            let text = format!("{to} is outside of the overlay {network}: not our traffic");
            steps.push(Step::failed("overlay", text));
            steps.push(self.kernel_route(to, None).await);
            return steps;
        }
        steps.push(Step::passed(
            "overlay",
            format!("{to} is in the overlay {network}"),
        ));

        let table = self.overlay.table();
        let Some(peer) = table.lookup(to) else {
            steps.push(self.no_lease(to));
            return steps;
        };
        let records = self.overlay.peer_totals();
        let record = records.iter().find(|(peer, _)| peer.subnet.contains(&to));
        let subnet = record.map_or(own, |(record, _)| record.subnet);
        let endpoint = peer.endpoint();
        let mac = record.map_or_else(String::new, |(record, _)| record.vxlan.vtep_mac.to_string());
        steps.push(Step::passed(
            "lease",
            format!("{subnet} is leased by {}, VTEP {mac}", endpoint.ip()),
        ));
        let way = self.overlay.next_hop(subnet).unwrap_or(NextHop::Tunnel);
        steps.push(self.kernel_route(to, Some(way)).await);
        steps.push(self.underlay_route(*endpoint.ip()).await);
        if let NextHop::Tunnel = way {
            steps.push(self.tunnel(to, *endpoint.ip()));
            steps.push(self.size(subnet));
        }
        steps.push(self.way_back(to, *endpoint.ip()));
        steps
    }

    fn no_lease(&self, to: Ipv4Addr) -> Step {
        let refused = self.manager.view.with(|set| {
            let covers = |name: &str| {
                let key: Option<SubnetKey> = name.parse().ok();
                key.is_some_and(|key| key.v4.contains(&to))
            };
            let found = set.refused().find(|refused| covers(&refused.name));
            found.map(|refused| (refused.name.clone(), refused.reason.text()))
        });
        let looping = self
            .overlay
            .looping()
            .find(|(subnet, ..)| subnet.contains(&to));
        let text = match (looping, refused) {
            (Some((subnet, public_ip, reason)), _) => format!(
                "{subnet} is leased by {public_ip}, and nothing is sent there: {reason}; dropped as \
                 out_no_route"
            ),
            (None, Some((name, reason))) => {
                format!("record {name} is refused: {reason}; dropped as out_no_route")
            }
            (None, None) => format!(
                "no lease covers {to}: dropped as out_no_route; 'uvxlan lease list' shows what \
                 there is"
            ),
        };
        Step::failed("lease", text)
    }

    /// What the kernel does with a packet to `to`, and whether that is the wanted way.
    async fn kernel_route(&self, to: Ipv4Addr, wanted: Option<NextHop>) -> Step {
        let name = "kernel route";
        let found = match self.netlink.route_get(to).await {
            Ok(Some(found)) => found,
            Ok(None) => return Step::failed(name, format!("the kernel has no route to {to}")),
            Err(error) => return Step::failed(name, error.to_string()),
        };
        let device = self.link_name(found.ifindex).await;
        let via = found
            .gateway
            .map(|gateway| format!(" via {gateway}"))
            .unwrap_or_default();
        let text = format!("{to}{via} dev {device}");
        let expected = match wanted {
            None => return Step::passed(name, text),
            Some(NextHop::Tunnel) => self.overlay.ifindex(),
            Some(NextHop::Direct { ifindex, .. }) => ifindex,
        };
        if found.ifindex == expected {
            Step::passed(name, text)
        } else {
            let wanted = self.link_name(expected).await;
            Step::failed(
                name,
                format!(
                    "{text}, and not dev {wanted}: another route is in the way (ip route get {to})"
                ),
            )
        }
    }

    async fn underlay_route(&self, peer: Ipv4Addr) -> Step {
        let name = "underlay";
        match self.netlink.route_get(peer).await {
            Ok(Some(found)) if found.ifindex == self.overlay.ifindex() => Step::failed(
                name,
                format!("the route to {peer} leads into the overlay device itself: a loop"),
            ),
            Ok(Some(found)) => {
                let device = self.link_name(found.ifindex).await;
                let via = found
                    .gateway
                    .map_or("on the link".into(), |gateway| format!("via {gateway}"));
                let source = self.underlay.current().address;
                Step::passed(name, format!("{peer} {via} dev {device}, from {source}"))
            }
            Ok(None) => Step::failed(name, format!("this host has no route to {peer}")),
            Err(error) => Step::failed(name, error.to_string()),
        }
    }

    fn tunnel(&self, to: Ipv4Addr, peer: Ipv4Addr) -> Step {
        let port = self.config.backend.port;
        let Some(dataplane) = self.overlay.dataplane() else {
            return Step::failed("tunnel", "the packet loop does not run");
        };
        let packet = icmp_packet(self.state.subnet.network(), to);
        let source = ipv4::Packet::new_checked(&packet)
            .ok()
            .and_then(|packet| dataplane.source_port(flow::hash(&packet)));
        let source = source.map_or_else(String::new, |port| format!(" from port {port}"));
        let text = format!(
            "VNI {} in UDP to {peer}:{port}{source} (for a ping from this host; each flow has one of {})",
            self.config.backend.vni,
            dataplane.source_ports()
        );
        Step::passed("tunnel", text)
    }

    fn size(&self, subnet: ipnet::Ipv4Net) -> Step {
        let mtu = self.mtu;
        let probed = self
            .probes
            .health(subnet)
            .and_then(|health| health.path_mtu);
        match probed {
            Some(largest) if largest < mtu => Step::passed(
                "size",
                format!("packets up to {mtu} bytes; the longest probe answered had {largest}"),
            ),
            Some(_) => Step::passed(
                "size",
                format!("packets up to {mtu} bytes, which a probe confirms"),
            ),
            None => Step::passed("size", format!("packets up to {mtu} bytes, not probed")),
        }
    }

    /// What the peer check would say to a packet from `from`, sent by that peer, to us.
    fn way_back(&self, from: Ipv4Addr, peer: Ipv4Addr) -> Step {
        let name = "way back";
        let mut guard = self.overlay.plan().guard.clone();
        guard.refresh();
        if guard.mode == Mode::Off {
            return Step::passed(name, "everything passes (--peer-check=off)");
        }
        let table = self.overlay.table();
        let packet = icmp_packet(from, self.state.subnet.network());
        let verdict = match ipv4::Packet::new_checked(&packet) {
            Ok(packet) => guard
                .sender(&table, peer)
                .and_then(|known| guard.packet(&table, peer, known.is_none(), &packet)),
            Err(_) => Err(Counter::InMalformed),
        };
        match verdict {
            Ok(()) => Step::passed(
                name,
                format!("a packet from {from}, sent by {peer}, passes the peer check"),
            ),
            Err(counter) => Step::failed(
                name,
                format!(
                    "a packet from {from}, sent by {peer}, would be dropped as {}",
                    counter.label()
                ),
            ),
        }
    }

    async fn link_name(&self, index: u32) -> String {
        match self.netlink.link_by_index(index).await {
            Ok(Some(link)) => link.name,
            _ => format!("#{index}"),
        }
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
            sizes: SizeCounts {
                sum: totals.get(moved) as f64,
                counts: counts
                    .map(|(size, count)| (largest_of_size(size).map(|most| most as f64), *count))
                    .collect(),
            },
        }
    });
    batches.collect()
}

/// How a peer does that something is sent to, by its answers to probes, by the seconds since
/// a packet came from it, and by whether it is known from memory only.
fn state(health: Option<Health>, seen: Option<u64>, from_memory: bool) -> &'static str {
    let silent = health.is_some_and(|health| health.is_silent());
    match seen {
        _ if !silent && health.is_some_and(|health| health.rtt.is_some()) => "ok",
        // It is there, and answers nothing: what we send does not arrive.
        Some(ago) if silent && ago <= 10 => "one-way",
        _ if silent => "silent",
        Some(ago) if ago <= 60 => "ok",
        _ if from_memory => "stale",
        _ => "unknown",
    }
}

/// The head of an ICMP packet, for checks that look at addresses.
fn icmp_packet(source: Ipv4Addr, destination: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    packet[0] = 0x45;
    packet[3] = 28;
    packet[8] = 64;
    packet[9] = ICMP;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    packet
}
