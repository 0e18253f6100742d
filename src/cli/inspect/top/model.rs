//! What `uvxlan top` shows, computed from two samples of the daemon. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::control::{PeerStatus, Status};

/// Samples that a sparkline shows.
const HISTORY: usize = 120;

/// What the peers are sorted by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Order {
    /// Bits a second in both directions, highest first.
    #[default]
    Traffic,
    /// Longest first.
    RoundTrip,
    /// Highest first.
    Loss,
    Subnet,
}

impl Order {
    pub(super) const fn next(self) -> Self {
        match self {
            Self::Traffic => Self::RoundTrip,
            Self::RoundTrip => Self::Loss,
            Self::Loss => Self::Subnet,
            Self::Subnet => Self::Traffic,
        }
    }

    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Traffic => "traffic",
            Self::RoundTrip => "round trip",
            Self::Loss => "loss",
            Self::Subnet => "subnet",
        }
    }
}

/// Traffic in one direction, for each second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rate {
    pub(super) packets: f64,
    pub(super) bits: f64,
}

/// A peer on the screen.
#[derive(Debug, Clone)]
pub(super) struct PeerRow {
    pub(super) peer: PeerStatus,
    pub(super) out: Rate,
    pub(super) inward: Rate,
}

/// CPU time of packet threads: name, and ticks used so far.
pub(super) type ThreadTicks = Vec<(String, u64)>;

/// The daemon at one moment.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) status: Status,
    pub(super) threads: ThreadTicks,
    /// Time since some fixed start.
    pub(super) at: Duration,
}

/// Everything on the screen.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) status: Status,
    /// All peers together, to them and from them.
    pub(super) total: [Rate; 2],
    /// Bits a second in the latest samples, to the peers and from them.
    pub(super) history: [VecDeque<u64>; 2],
    /// By subnet.
    pub(super) peers: Vec<PeerRow>,
    /// Name, rate and total of each drop, highest rate first.
    pub(super) drops: Vec<(String, f64, u64)>,
    /// Mean packets of a system call: sending, receiving, writing.
    pub(super) batches: [f64; 3],
    /// Percentage of a core that each packet thread uses.
    pub(super) cpu: Vec<(String, f64)>,
    previous: Option<Previous>,
}

/// What the rates are differences to.
#[derive(Debug)]
struct Previous {
    at: Duration,
    peers: BTreeMap<Ipv4Net, PeerStatus>,
    counters: BTreeMap<String, u64>,
    threads: ThreadTicks,
}

/// Increase of a counter, which may have restarted at 0.
fn increase(now: u64, before: u64) -> f64 {
    if now >= before {
        (now - before) as f64
    } else {
        now as f64
    }
}

impl Model {
    /// `ticks_per_second` is the unit of thread times.
    pub(super) fn update(&mut self, sample: Sample, ticks_per_second: f64) {
        let counters: BTreeMap<String, u64> = sample
            .status
            .counters
            .iter()
            .map(|counter| (counter.name.clone(), counter.value))
            .collect();
        let by_subnet: BTreeMap<Ipv4Net, PeerStatus> = sample
            .status
            .peers
            .iter()
            .map(|peer| (peer.subnet, peer.clone()))
            .collect();
        self.peers = sample.status.peers.iter().cloned().map(idle_row).collect();
        if let Some(previous) = self.previous.take() {
            let seconds = sample
                .at
                .saturating_sub(previous.at)
                .as_secs_f64()
                .max(0.001);
            for row in &mut self.peers {
                if let Some(before) = previous.peers.get(&row.peer.subnet) {
                    *row = row_with_rates(&row.peer, before, seconds);
                }
            }
            self.rates(&sample.status, &counters, &previous.counters, seconds);
            self.cpu = sample
                .threads
                .iter()
                .map(|(name, ticks)| {
                    let known = previous.threads.iter().find(|(known, _)| known == name);
                    let used = known.map_or(0.0, |(_, then)| increase(*ticks, *then));
                    (name.clone(), used / ticks_per_second / seconds * 100.0)
                })
                .collect();
        }
        self.previous = Some(Previous {
            at: sample.at,
            peers: by_subnet,
            counters,
            threads: sample.threads,
        });
        self.status = sample.status;
    }

    fn rates(
        &mut self,
        status: &Status,
        now: &BTreeMap<String, u64>,
        old: &BTreeMap<String, u64>,
        seconds: f64,
    ) {
        let sum = |rate: fn(&PeerRow) -> Rate| {
            self.peers
                .iter()
                .map(rate)
                .fold(Rate::default(), |a, b| Rate {
                    packets: a.packets + b.packets,
                    bits: a.bits + b.bits,
                })
        };
        self.total = [sum(|row| row.out), sum(|row| row.inward)];
        for (history, rate) in self.history.iter_mut().zip(self.total) {
            history.push_back(rate.bits as u64);
            if history.len() > HISTORY {
                history.pop_front();
            }
        }
        let delta = |name: &str| {
            let get = |counters: &BTreeMap<String, u64>| counters.get(name).copied().unwrap_or(0);
            increase(get(now), get(old))
        };
        let per_call = |packets: &str, calls: &str| delta(packets) / delta(calls).max(1.0);
        self.batches = [
            per_call("sent", "send_calls"),
            per_call("udp_read", "receive_calls"),
            per_call("delivered", "write_calls"),
        ];
        self.drops = status
            .counters
            .iter()
            .filter(|counter| counter.has_drops())
            .map(|counter| {
                (
                    counter.name.clone(),
                    delta(&counter.name) / seconds,
                    counter.value,
                )
            })
            .collect();
        self.drops.sort_by(|a, b| b.1.total_cmp(&a.1));
    }

    pub(super) fn sorted(&self, order: Order) -> Vec<&PeerRow> {
        let mut rows: Vec<_> = self.peers.iter().collect();
        match order {
            Order::Traffic => {
                rows.sort_by(|a, b| {
                    (b.out.bits + b.inward.bits).total_cmp(&(a.out.bits + a.inward.bits))
                });
            }
            Order::RoundTrip => rows.sort_by_key(|row| std::cmp::Reverse(row.peer.rtt_us)),
            Order::Loss => rows.sort_by_key(|row| std::cmp::Reverse(row.peer.loss_percent)),
            Order::Subnet => {}
        }
        rows
    }
}

fn idle_row(peer: PeerStatus) -> PeerRow {
    PeerRow {
        peer,
        out: Rate::default(),
        inward: Rate::default(),
    }
}

fn row_with_rates(now: &PeerStatus, before: &PeerStatus, seconds: f64) -> PeerRow {
    let rate = |packets: (u64, u64), bytes: (u64, u64)| Rate {
        packets: increase(packets.0, packets.1) / seconds,
        bits: increase(bytes.0, bytes.1) * 8.0 / seconds,
    };
    PeerRow {
        out: rate(
            (now.out_packets, before.out_packets),
            (now.out_bytes, before.out_bytes),
        ),
        inward: rate(
            (now.in_packets, before.in_packets),
            (now.in_bytes, before.in_bytes),
        ),
        peer: now.clone(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::{CounterKind, CounterStatus, PeerRoute, PeerState, ProbeMethod};

    pub(crate) fn peer(number: u8, packets: u64) -> PeerStatus {
        PeerStatus {
            subnet: Ipv4Net::new_assert([10, 5, number, 0].into(), 24),
            public_ip: [192, 0, 2, number].into(),
            vtep_mac: String::new(),
            route: PeerRoute::Tunnel,
            state: PeerState::Ok,
            probe: Some(ProbeMethod::InBand),
            rtt_us: Some(u64::from(number) * 100),
            loss_percent: Some(0),
            loss_out_percent: None,
            loss_in_percent: None,
            path_mtu: Some(1450),
            seen_seconds_ago: Some(0),
            out_packets: packets,
            out_bytes: packets * 1000,
            in_packets: 0,
            in_bytes: 0,
        }
    }

    pub(crate) fn sample(at: u64, packets: u64, drops: u64) -> Sample {
        let counter = |name: &str, kind, value| CounterStatus {
            name: name.into(),
            kind,
            value,
        };
        Sample {
            status: Status {
                peers: vec![peer(1, packets), peer(2, packets * 3)],
                counters: vec![
                    counter("sent", CounterKind::Packets, packets * 4),
                    counter("send_calls", CounterKind::Event, packets / 10),
                    counter("out_no_route", CounterKind::DropOut, drops),
                ],
                ..Status::default()
            },
            threads: vec![("uvxlan-0".into(), at * 50)],
            at: Duration::from_secs(at),
        }
    }

    #[test]
    fn rates_are_differences_over_time() {
        let mut model = Model::default();
        model.update(sample(1, 1000, 4), 100.0);
        assert_eq!(model.total[0], Rate::default(), "one sample has no rates");
        model.update(sample(3, 3000, 8), 100.0);
        assert_eq!(model.peers[0].out.packets, 1000.0);
        assert_eq!(model.peers[1].out.bits, 24_000_000.0);
        assert_eq!(model.total[0].packets, 4000.0);
        assert_eq!(model.history[0], [32_000_000]);
        assert_eq!(model.drops, [("out_no_route".to_owned(), 2.0, 8)]);
        assert_eq!(model.batches[0], 40.0);
        assert_eq!(model.cpu, [("uvxlan-0".to_owned(), 50.0)]);
        // The daemon was restarted: counters began at 0.
        model.update(sample(4, 10, 0), 100.0);
        assert_eq!(model.peers[0].out.packets, 10.0);
    }

    #[test]
    fn each_order_sorts_and_leads_to_the_next() {
        let mut model = Model::default();
        model.update(sample(1, 0, 0), 100.0);
        model.update(sample(2, 10, 0), 100.0);
        let first = |order| model.sorted(order)[0].peer.subnet.to_string();
        assert_eq!(first(Order::Traffic), "10.5.2.0/24");
        assert_eq!(first(Order::RoundTrip), "10.5.2.0/24");
        assert_eq!(first(Order::Subnet), "10.5.1.0/24");
        let mut order = Order::Traffic;
        for _ in 0..4 {
            order = order.next();
        }
        assert_eq!(order, Order::Traffic);
    }
}
