//! Which of the accepted peers packets are sent to: not those whose datagrams would come
//! back to this host. Pure; the caller asks the kernel.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::ops::Bound;

use ipnet::Ipv4Net;

use crate::dataplane::peer_counters::PeerTotals;
use crate::host::loop_check::Loop;
use crate::route::peer::PeerId;
use crate::subnet::manager::PeerChange;
use crate::subnet::validate::PeerRecord;

/// IDs that stay unused before the oldest of them is reused: a packet thread may still count
/// for the peer that had it.
const UNUSED_IDS: usize = 64;

/// What the route table is to hold for a subnet; `None` is no entry.
pub(crate) type TableEntry = (Ipv4Net, Option<(PeerRecord, PeerId)>);

/// Allocates small, dense IDs.
#[derive(Debug, Default)]
struct PeerIds {
    next: u32,
    free: VecDeque<PeerId>,
}

impl PeerIds {
    fn allocate(&mut self) -> PeerId {
        if self.free.len() > UNUSED_IDS
            && let Some(id) = self.free.pop_front()
        {
            return id;
        }
        self.next += 1;
        PeerId(self.next - 1)
    }

    fn free(&mut self, id: PeerId) {
        self.free.push_back(id);
    }
}

#[derive(Debug, Clone, Copy)]
struct Accepted {
    record: PeerRecord,
    id: PeerId,
    /// What was counted for this ID before it was this peer's.
    before: PeerTotals,
}

/// The accepted peers, by subnet.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    accepted: BTreeMap<Ipv4Net, Accepted>,
    ids: PeerIds,
    looping: BTreeMap<Ipv4Net, Loop>,
    /// Subnets of the peers that do not loop: the kernel must send them to the device.
    reachable: BTreeSet<Ipv4Net>,
    /// The subnet after which the next check for loops begins.
    cursor: Option<Ipv4Net>,
}

impl Peers {
    /// Applies one change. `looping`: why datagrams to a new or changed peer would come back, if
    /// they would. `counted` returns what was counted for an ID so far.
    pub(crate) fn apply(
        &mut self,
        change: &PeerChange,
        looping: Option<Loop>,
        counted: impl FnOnce(PeerId) -> PeerTotals,
    ) -> TableEntry {
        match change {
            PeerChange::Added(peer) | PeerChange::Updated { new: peer, .. } => {
                if let PeerChange::Updated { old, .. } = change
                    && old.public_ip != peer.public_ip
                {
                    self.looping.remove(&old.subnet);
                }
                let known = self.accepted.get(&peer.subnet).copied();
                let accepted = match known {
                    Some(known) => Accepted {
                        record: *peer,
                        ..known
                    },
                    None => {
                        let id = self.ids.allocate();
                        Accepted {
                            record: *peer,
                            id,
                            before: counted(id),
                        }
                    }
                };
                self.accepted.insert(peer.subnet, accepted);
                self.set_loop(accepted, looping)
            }
            PeerChange::Removed(peer) => {
                if let Some(accepted) = self.accepted.remove(&peer.subnet) {
                    self.ids.free(accepted.id);
                }
                self.looping.remove(&peer.subnet);
                self.reachable.remove(&peer.subnet);
                (peer.subnet, None)
            }
        }
    }

    fn set_loop(&mut self, accepted: Accepted, looping: Option<Loop>) -> TableEntry {
        let peer = accepted.record;
        let subnet = peer.subnet;
        match looping {
            Some(reason) => {
                if self.looping.insert(subnet, reason) != Some(reason) {
                    tracing::error!(
                        event = "peer_loop", %subnet, public_ip = %peer.public_ip, %reason,
                        "nothing is sent to this peer: datagrams to its PublicIP would come back"
                    );
                }
                self.reachable.remove(&subnet);
                (subnet, None)
            }
            None => {
                if self.looping.remove(&subnet).is_some() {
                    tracing::info!(
                        event = "peer_loop_over", %subnet, public_ip = %peer.public_ip,
                        "datagrams to this peer no longer come back"
                    );
                }
                self.reachable.insert(subnet);
                (subnet, Some((peer, accepted.id)))
            }
        }
    }

    /// Number of accepted peers.
    pub(crate) fn count(&self) -> usize {
        self.accepted.len()
    }

    /// The next `count` peers to check for loops, in turn.
    pub(crate) fn next_to_check(&mut self, count: usize) -> Vec<PeerRecord> {
        let from = self.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.accepted.range((from, Bound::Unbounded));
        let next: Vec<_> = rest.take(count).map(|(_, peer)| peer.record).collect();
        self.cursor = match next.last() {
            Some(last) if next.len() == count => Some(last.subnet),
            // The end: the next check begins with the first peer.
            _ => None,
        };
        next
    }

    /// Takes in which peers loop now; returns the entries of the route table that change.
    pub(crate) fn update_loops(
        &mut self,
        checked: impl IntoIterator<Item = (PeerRecord, Option<Loop>)>,
    ) -> Vec<TableEntry> {
        let mut changes = Vec::new();
        for (peer, looping) in checked {
            let differs = self.looping.get(&peer.subnet).copied() != looping;
            if let Some(accepted) = self.accepted.get(&peer.subnet).copied()
                && differs
            {
                changes.push(self.set_loop(accepted, looping));
            }
        }
        changes
    }

    /// Subnets that packets are sent to.
    pub(crate) const fn reachable(&self) -> &BTreeSet<Ipv4Net> {
        &self.reachable
    }

    /// The public address of a peer that packets are sent to.
    pub(crate) fn reachable_at(&self, subnet: Ipv4Net) -> Option<Ipv4Addr> {
        let peer = self.accepted.get(&subnet)?;
        let reachable = self.reachable.contains(&subnet);
        reachable.then_some(peer.record.public_ip)
    }

    /// All accepted peers, and what passed between each and us. `counted` returns what was counted
    /// for an ID.
    pub(crate) fn totals(
        &self,
        counted: impl Fn(PeerId) -> PeerTotals,
    ) -> impl Iterator<Item = (PeerRecord, PeerTotals)> {
        let accepted = self.accepted.values();
        accepted.map(move |peer| (peer.record, counted(peer.id) - peer.before))
    }

    /// All counters restart at zero.
    pub(crate) fn reset_counts(&mut self) {
        for peer in self.accepted.values_mut() {
            peer.before = PeerTotals::default();
        }
    }

    /// Peers that nothing is sent to: subnet, public address, and why.
    pub(crate) fn looping(&self) -> impl Iterator<Item = (Ipv4Net, Ipv4Addr, Loop)> {
        self.looping.iter().filter_map(|(subnet, reason)| {
            let peer = self.accepted.get(subnet)?;
            Some((*subnet, peer.record.public_ip, *reason))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subnet::lease::VxlanData;
    use crate::wire::MacAddr;

    fn peer(number: u8) -> PeerRecord {
        PeerRecord {
            subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, 5, number, 0), 24),
            public_ip: Ipv4Addr::new(192, 0, 2, number),
            vxlan: VxlanData {
                vni: None,
                vtep_mac: MacAddr([2, 0, 0, 0, 0, number]),
            },
            answers_probes: false,
        }
    }

    #[test]
    fn a_looping_peer_is_excluded_until_it_loops_no_longer() {
        let mut peers = Peers::default();
        let (one, two) = (peer(1), peer(2));
        let added = peers.apply(&PeerChange::Added(one), None, zero);
        assert_eq!(added, (one.subnet, Some((one, PeerId(0)))));
        let added = peers.apply(&PeerChange::Added(two), Some(Loop::IntoOverlay), zero);
        assert_eq!(added, (two.subnet, None));
        assert_eq!(peers.reachable().iter().collect::<Vec<_>>(), [&one.subnet]);
        let looping: Vec<_> = peers.looping().collect();
        assert_eq!(looping, [(two.subnet, two.public_ip, Loop::IntoOverlay)]);

        let same = [(one, None), (two, Some(Loop::IntoOverlay))];
        assert!(peers.update_loops(same).is_empty());
        let turned = [(one, Some(Loop::OwnAddress)), (two, None)];
        assert_eq!(
            peers.update_loops(turned),
            [(one.subnet, None), (two.subnet, Some((two, PeerId(1))))]
        );
        assert_eq!(peers.reachable().iter().collect::<Vec<_>>(), [&two.subnet]);
        peers.apply(&PeerChange::Removed(one), None, zero);
        peers.apply(&PeerChange::Removed(two), None, zero);
        assert_eq!((peers.reachable().len(), peers.looping().count()), (0, 0));
    }

    fn zero(_: PeerId) -> PeerTotals {
        PeerTotals::default()
    }

    #[test]
    fn ids_are_small_and_earlier_counts_are_not_the_new_peers() {
        let mut peers = Peers::default();
        let mut seen = 0;
        // By ID: ten packets for each peer that had it.
        let mut counted = BTreeMap::new();
        for round in 0..1000 {
            let peer = peer((round % 200) as u8);
            let now = |id: PeerId| PeerTotals {
                in_packets: counted.get(&id.0).copied().unwrap_or(0),
                ..PeerTotals::default()
            };
            let (_, entry) = peers.apply(&PeerChange::Added(peer), None, now);
            let (_, id) = entry.unwrap();
            seen = seen.max(id.0);
            *counted.entry(id.0).or_insert(0) += 10;
            let now = |id: PeerId| PeerTotals {
                in_packets: counted[&id.0],
                ..PeerTotals::default()
            };
            let totals: Vec<_> = peers.totals(now).collect();
            assert_eq!(totals.len(), 1);
            assert_eq!(totals[0].1.in_packets, 10, "round {round}, number {id:?}");
            peers.apply(&PeerChange::Removed(peer), None, zero);
        }
        assert!(seen <= UNUSED_IDS as u32 + 1, "{seen}");
    }

    #[test]
    fn a_changed_peer_keeps_its_id() {
        let mut peers = Peers::default();
        let old = peer(1);
        peers.apply(&PeerChange::Added(old), None, zero);
        let new = PeerRecord {
            public_ip: Ipv4Addr::new(192, 0, 2, 99),
            ..old
        };
        let changed = peers.apply(&PeerChange::Updated { old, new }, None, |_| unreachable!());
        assert_eq!(changed, (old.subnet, Some((new, PeerId(0)))));
    }

    #[test]
    fn every_peer_is_checked_in_turn() {
        let mut peers = Peers::default();
        for number in 1..=5 {
            peers.apply(&PeerChange::Added(peer(number)), None, zero);
        }
        let mut turns = |count| -> Vec<u8> {
            let next = peers.next_to_check(count).into_iter();
            next.map(|peer| peer.public_ip.octets()[3]).collect()
        };
        assert_eq!(turns(2), [1, 2]);
        assert_eq!(turns(2), [3, 4]);
        assert_eq!(turns(2), [5]);
        assert_eq!(turns(5), [1, 2, 3, 4, 5]);
        assert_eq!(turns(5), [0u8; 0]);
        assert_eq!(turns(9), [1, 2, 3, 4, 5]);
    }
}
