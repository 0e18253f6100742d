//! Which of the accepted peers packets are sent to: not those whose datagrams would come
//! back to this host. Pure; what the kernel says about ways is handed in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::Bound;

use ipnet::Ipv4Net;

use crate::host::way::Loop;
use crate::subnet::manager::PeerChange;
use crate::subnet::validate::PeerRecord;

/// The accepted peers, by subnet.
#[derive(Debug, Default)]
pub struct Peers {
    accepted: BTreeMap<Ipv4Net, PeerRecord>,
    looping: BTreeMap<Ipv4Net, Loop>,
    /// Subnets of those that are not looping: the kernel must send them to the device.
    reached: BTreeSet<Ipv4Net>,
    /// Behind which subnet the next look at ways begins.
    cursor: Option<Ipv4Net>,
}

impl Peers {
    /// Takes in one change; `found` says whether datagrams to a new or changed peer would
    /// come back. Returns the peer's place in the route table: `None` is none.
    pub fn apply(
        &mut self,
        change: &PeerChange,
        found: Option<Loop>,
    ) -> (Ipv4Net, Option<PeerRecord>) {
        match change {
            PeerChange::Added(peer) | PeerChange::Updated { new: peer, .. } => {
                if let PeerChange::Updated { old, .. } = change
                    && old.public_ip != peer.public_ip
                {
                    self.looping.remove(&old.subnet);
                }
                self.accepted.insert(peer.subnet, *peer);
                self.settle(*peer, found)
            }
            PeerChange::Removed(peer) => {
                self.accepted.remove(&peer.subnet);
                self.looping.remove(&peer.subnet);
                self.reached.remove(&peer.subnet);
                (peer.subnet, None)
            }
        }
    }

    fn settle(&mut self, peer: PeerRecord, found: Option<Loop>) -> (Ipv4Net, Option<PeerRecord>) {
        let subnet = peer.subnet;
        match found {
            Some(reason) => {
                if self.looping.insert(subnet, reason) != Some(reason) {
                    tracing::error!(
                        event = "peer_loop", %subnet, public_ip = %peer.public_ip, %reason,
                        "nothing is sent to this peer: datagrams to its PublicIP would come back"
                    );
                }
                self.reached.remove(&subnet);
                (subnet, None)
            }
            None => {
                if self.looping.remove(&subnet).is_some() {
                    tracing::info!(
                        event = "peer_loop_over", %subnet, public_ip = %peer.public_ip,
                        "the way to this peer leads out again"
                    );
                }
                self.reached.insert(subnet);
                (subnet, Some(peer))
            }
        }
    }

    /// The next `count` peers to look at, in turn.
    pub fn next(&mut self, count: usize) -> Vec<PeerRecord> {
        let from = self.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.accepted.range((from, Bound::Unbounded));
        let next: Vec<_> = rest.take(count).map(|(_, peer)| *peer).collect();
        self.cursor = match next.last() {
            Some(last) if next.len() == count => Some(last.subnet),
            // The end: the next look begins at the beginning.
            _ => None,
        };
        next
    }

    /// What was found on looking again; returns the places in the route table that change.
    pub fn look(
        &mut self,
        found: impl IntoIterator<Item = (PeerRecord, Option<Loop>)>,
    ) -> Vec<(Ipv4Net, Option<PeerRecord>)> {
        let mut changes = Vec::new();
        for (peer, found) in found {
            if self.looping.get(&peer.subnet).copied() != found {
                changes.push(self.settle(peer, found));
            }
        }
        changes
    }

    /// Subnets that packets are sent to.
    #[must_use]
    pub const fn reached(&self) -> &BTreeSet<Ipv4Net> {
        &self.reached
    }

    /// Peers that nothing is sent to: subnet, public address, and why.
    pub fn looping(&self) -> impl Iterator<Item = (Ipv4Net, Ipv4Addr, Loop)> {
        self.looping.iter().filter_map(|(subnet, reason)| {
            let peer = self.accepted.get(subnet)?;
            Some((*subnet, peer.public_ip, *reason))
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
        }
    }

    #[test]
    fn a_looping_peer_is_kept_out_until_its_way_leads_out() {
        let mut peers = Peers::default();
        let (one, two) = (peer(1), peer(2));
        let added = peers.apply(&PeerChange::Added(one), None);
        assert_eq!(added, (one.subnet, Some(one)));
        let added = peers.apply(&PeerChange::Added(two), Some(Loop::IntoOverlay));
        assert_eq!(added, (two.subnet, None));
        assert_eq!(peers.reached().iter().collect::<Vec<_>>(), [&one.subnet]);
        let looping: Vec<_> = peers.looping().collect();
        assert_eq!(looping, [(two.subnet, two.public_ip, Loop::IntoOverlay)]);

        let same = [(one, None), (two, Some(Loop::IntoOverlay))];
        assert!(peers.look(same).is_empty());
        let turned = [(one, Some(Loop::OwnAddress)), (two, None)];
        assert_eq!(
            peers.look(turned),
            [(one.subnet, None), (two.subnet, Some(two))]
        );
        assert_eq!(peers.reached().iter().collect::<Vec<_>>(), [&two.subnet]);
        peers.apply(&PeerChange::Removed(one), None);
        peers.apply(&PeerChange::Removed(two), None);
        assert_eq!((peers.reached().len(), peers.looping().count()), (0, 0));
    }

    #[test]
    fn every_peer_has_its_turn() {
        let mut peers = Peers::default();
        for number in 1..=5 {
            peers.apply(&PeerChange::Added(peer(number)), None);
        }
        let mut turns = |count| -> Vec<u8> {
            let next = peers.next(count).into_iter();
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
