//! Which peers have labels of their own, and what the others add up to. Pure.
//!
//! Prometheus takes a counter that falls for one that began anew, and what it shows then for
//! all that came in since. So a peer keeps its place as long as it is there, and what one of
//! the others has counted stays in their sum when it goes.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;

use crate::control::PeerStatus;

/// Peers with labels of their own.
pub const PLACES: usize = 256;

/// What passed between this host and a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Packets to it.
    pub out_packets: u64,
    /// Their bytes.
    pub out_bytes: u64,
    /// Packets from it.
    pub in_packets: u64,
    /// Their bytes.
    pub in_bytes: u64,
}

impl Passed {
    /// By a peer's status.
    #[must_use]
    pub const fn of(peer: &PeerStatus) -> Self {
        Self {
            out_packets: peer.out_packets,
            out_bytes: peer.out_bytes,
            in_packets: peer.in_packets,
            in_bytes: peer.in_bytes,
        }
    }

    fn each(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            out_packets: of(self.out_packets, other.out_packets),
            out_bytes: of(self.out_bytes, other.out_bytes),
            in_packets: of(self.in_packets, other.in_packets),
            in_bytes: of(self.in_bytes, other.in_bytes),
        }
    }

    /// What came since `earlier`, for counters that may have begun anew.
    fn since(self, earlier: Self) -> Self {
        self.each(earlier, |now, then| now.checked_sub(then).unwrap_or(now))
    }
}

/// The books.
#[derive(Debug, Default)]
pub struct Places {
    own: BTreeSet<Ipv4Net>,
    /// What each of the others had at the last look.
    others: BTreeMap<Ipv4Net, Passed>,
    /// All that the others ever had, as far as it was seen.
    sum: Passed,
}

impl Places {
    /// Takes in a look at the peers. Whose place becomes free goes to one of the others.
    pub fn look(&mut self, peers: &[PeerStatus]) {
        let there: BTreeMap<Ipv4Net, Passed> = peers
            .iter()
            .map(|peer| (peer.subnet, Passed::of(peer)))
            .collect();
        self.own.retain(|subnet| there.contains_key(subnet));
        self.others.retain(|subnet, _| there.contains_key(subnet));
        for (subnet, now) in there {
            if self.own.contains(&subnet) {
                continue;
            }
            if self.own.len() < PLACES {
                // What it had as one of the others stays there.
                self.others.remove(&subnet);
                self.own.insert(subnet);
                continue;
            }
            let before = self.others.insert(subnet, now).unwrap_or_default();
            self.sum = self.sum.each(now.since(before), u64::wrapping_add);
        }
    }

    /// Whether a peer has labels of its own.
    #[must_use]
    pub fn is_own(&self, subnet: Ipv4Net) -> bool {
        self.own.contains(&subnet)
    }

    /// The sum of all others; none where there never were any.
    #[must_use]
    pub fn others(&self) -> Option<Passed> {
        (!self.others.is_empty() || self.sum != Passed::default()).then_some(self.sum)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::control::{PeerRoute, PeerState, ProbeMethod};

    pub fn peer(number: u16, packets: u64) -> PeerStatus {
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
    fn a_place_is_kept_while_peers_of_lesser_subnets_come() {
        let mut places = Places::default();
        let later: Vec<_> = (300..556).map(|number| peer(number, 1)).collect();
        places.look(&later);
        assert_eq!(places.others(), None);
        let all: Vec<_> = (0..10).map(|number| peer(number, 7)).chain(later).collect();
        places.look(&all);
        assert!(places.is_own(peer(300, 0).subnet) && !places.is_own(peer(0, 0).subnet));
        assert_eq!(places.others().unwrap().out_packets, 70);
    }

    #[test]
    fn the_sum_of_the_others_never_falls() {
        let mut places = Places::default();
        let mut peers: Vec<_> = (0..258).map(|number| peer(number, 5)).collect();
        places.look(&peers);
        assert_eq!(places.others().unwrap().out_packets, 10);
        // One of them goes; the other one goes on.
        peers.pop();
        peers[256].out_packets = 8;
        places.look(&peers);
        assert_eq!(places.others().unwrap().out_packets, 13);
        // Its counters begin anew with the device.
        peers[256].out_packets = 2;
        places.look(&peers);
        assert_eq!(places.others().unwrap().out_packets, 15);
        // It takes a place that became free.
        peers.remove(0);
        places.look(&peers);
        assert!(places.is_own(peer(256, 0).subnet));
        assert_eq!(places.others().unwrap().out_packets, 15);
        // A new one takes its part in the sum.
        peers.push(peer(400, 4));
        places.look(&peers);
        assert_eq!(places.others().unwrap().out_packets, 19);
    }
}
