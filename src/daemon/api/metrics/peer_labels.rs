//! Which peers have a label of their own, and what the others add up to. Pure.
//!
//! Prometheus takes a counter that decreases for one that restarted at zero, and its whole value
//! for an increase. So a peer keeps its label as long as it exists, and the traffic of one of the
//! others stays in their sum when it is removed.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;

use crate::control::PeerStatus;

/// Peers with a label of their own.
const MAX_LABELS: usize = 256;

/// Traffic between this host and a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) out_packets: u64,
    pub(super) out_bytes: u64,
    pub(super) in_packets: u64,
    pub(super) in_bytes: u64,
}

impl Traffic {
    pub(super) const fn of(peer: &PeerStatus) -> Self {
        Self {
            out_packets: peer.out_packets,
            out_bytes: peer.out_bytes,
            in_packets: peer.in_packets,
            in_bytes: peer.in_bytes,
        }
    }

    fn combine(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            out_packets: of(self.out_packets, other.out_packets),
            out_bytes: of(self.out_bytes, other.out_bytes),
            in_packets: of(self.in_packets, other.in_packets),
            in_bytes: of(self.in_bytes, other.in_bytes),
        }
    }

    /// The increase since `earlier`, for counters that may have been reset.
    fn since(self, earlier: Self) -> Self {
        self.combine(earlier, |now, then| now.checked_sub(then).unwrap_or(now))
    }
}

#[derive(Debug, Default)]
pub(super) struct PeerLabels {
    labelled: BTreeSet<Ipv4Net>,
    /// The traffic of each of the others at the last update.
    others: BTreeMap<Ipv4Net, Traffic>,
    /// All traffic that was ever seen of the others.
    sum: Traffic,
}

impl PeerLabels {
    /// Updates labels and sum. A label of a removed peer goes to one of the others.
    pub(super) fn update(&mut self, peers: &[PeerStatus]) {
        let now: BTreeMap<Ipv4Net, Traffic> = peers
            .iter()
            .map(|peer| (peer.subnet, Traffic::of(peer)))
            .collect();
        self.labelled.retain(|subnet| now.contains_key(subnet));
        self.others.retain(|subnet, _| now.contains_key(subnet));
        for (subnet, traffic) in now {
            if self.labelled.contains(&subnet) {
                continue;
            }
            if self.labelled.len() < MAX_LABELS {
                // Its traffic so far stays in the sum.
                self.others.remove(&subnet);
                self.labelled.insert(subnet);
                continue;
            }
            let before = self.others.insert(subnet, traffic).unwrap_or_default();
            self.sum = self.sum.combine(traffic.since(before), u64::wrapping_add);
        }
    }

    pub(super) fn has_label(&self, subnet: Ipv4Net) -> bool {
        self.labelled.contains(&subnet)
    }

    /// The sum of all others; `None` if there never were any.
    pub(super) fn others(&self) -> Option<Traffic> {
        (!self.others.is_empty() || self.sum != Traffic::default()).then_some(self.sum)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::control::{PeerRoute, PeerState, ProbeMethod};

    pub(crate) fn peer(number: u16, packets: u64) -> PeerStatus {
        let [high, low] = number.to_be_bytes();
        PeerStatus {
            subnet: Ipv4Net::new_assert([10, high, low, 0].into(), 24),
            public_ip: [192, 0, 2, low].into(),
            vtep_mac: "02:00:00:00:00:01".into(),
            route: PeerRoute::Tunnel,
            state: PeerState::Ok,
            probe: Some(ProbeMethod::InBand),
            rtt_us: Some(1500),
            loss_percent: Some(5),
            loss_out_percent: Some(5),
            loss_in_percent: None,
            path_mtu: Some(1450),
            seen_seconds_ago: None,
            out_packets: packets,
            out_bytes: packets * 100,
            in_packets: 2,
            in_bytes: 200,
        }
    }

    #[test]
    fn a_label_is_kept_when_peers_of_lower_subnets_come() {
        let mut labels = PeerLabels::default();
        let later: Vec<_> = (300..556).map(|number| peer(number, 1)).collect();
        labels.update(&later);
        assert_eq!(labels.others(), None);
        let all: Vec<_> = (0..10).map(|number| peer(number, 7)).chain(later).collect();
        labels.update(&all);
        assert!(labels.has_label(peer(300, 0).subnet) && !labels.has_label(peer(0, 0).subnet));
        assert_eq!(labels.others().unwrap().out_packets, 70);
    }

    #[test]
    fn the_sum_of_the_others_never_decreases() {
        let mut labels = PeerLabels::default();
        let mut peers: Vec<_> = (0..258).map(|number| peer(number, 5)).collect();
        labels.update(&peers);
        assert_eq!(labels.others().unwrap().out_packets, 10);
        // One of them is removed; the other one continues.
        peers.pop();
        peers[256].out_packets = 8;
        labels.update(&peers);
        assert_eq!(labels.others().unwrap().out_packets, 13);
        // Its counters are reset with the device.
        peers[256].out_packets = 2;
        labels.update(&peers);
        assert_eq!(labels.others().unwrap().out_packets, 15);
        // It gets a label that became free.
        peers.remove(0);
        labels.update(&peers);
        assert!(labels.has_label(peer(256, 0).subnet));
        assert_eq!(labels.others().unwrap().out_packets, 15);
        // A new peer is added to the sum.
        peers.push(peer(400, 4));
        labels.update(&peers);
        assert_eq!(labels.others().unwrap().out_packets, 19);
    }
}
