//! Conflicting records: which one is in force, and which ones wait.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::super::refusals::MAX_KEPT;
use super::{Accepted, PeerChange, PeerRecord, PeerSet, Rejection, Waiting};
use crate::wire::MacAddr;

/// Which of two records wins: the older one, in every node's eyes.
type Rank<'a> = (i64, &'a str);

impl PeerSet {
    /// Accepts a valid record instead of younger ones, or lets it wait for an older one; `true` if
    /// a subnet or an address may have become free.
    pub(super) fn place(
        &mut self,
        name: String,
        record: Waiting,
        changes: &mut Vec<PeerChange>,
    ) -> bool {
        let rank = (record.created, name.as_str());
        let mut rivals = self.rivals(&name, &record.peer);
        if let Some((rival, reason)) = rivals.iter().find(|(rival, _)| self.rank(rival) < rank) {
            let revision = record.revision;
            self.refusals
                .refuse(&name, revision, *reason, Some(rival.clone()));
            let freed = match reason {
                Rejection::Overlap => self.remove(&name, changes),
                _ => self.release_address(&name),
            };
            if self.waiting.len() < MAX_KEPT {
                self.waiting.insert(name, record);
            }
            return freed;
        }
        let freed = !rivals.is_empty();
        for (rival, reason) in rivals.drain(..) {
            self.displace(&rival, reason, &name, changes);
        }
        self.accept(name, &record, changes) || freed
    }

    pub(super) fn rank<'a>(&self, name: &'a str) -> Rank<'a> {
        let place = self.by_name.get(name);
        let accepted = place.and_then(|place| self.by_network.get(place));
        (accepted.map_or(i64::MAX, |accepted| accepted.created), name)
    }

    /// Removes a record in force that conflicts with an older one; it waits.
    pub(super) fn displace(
        &mut self,
        name: &str,
        reason: Rejection,
        winner: &str,
        changes: &mut Vec<PeerChange>,
    ) {
        let place = self.by_name.get(name);
        let Some(accepted) = place.and_then(|place| self.by_network.get(place)) else {
            return;
        };
        let waiting = Waiting {
            created: accepted.created,
            revision: accepted.revision,
            peer: accepted.peer,
        };
        self.refusals
            .refuse(name, waiting.revision, reason, Some(winner.to_owned()));
        // Newer content of it may already be waiting.
        if self.waiting.len() < MAX_KEPT {
            self.waiting.entry(name.to_owned()).or_insert(waiting);
        }
        self.remove(name, changes);
    }

    /// Frees the address of a record, which has another one now.
    pub(super) fn release_address(&mut self, name: &str) -> bool {
        let place = self.by_name.get(name);
        let held = place.and_then(|place| Some(self.by_network.get(place)?.peer.public_ip));
        let Some(address) =
            held.filter(|held| self.by_address.get(held).is_some_and(|by| by == name))
        else {
            return false;
        };
        self.by_address.remove(&address);
        true
    }

    pub(super) fn release_mac(&mut self, name: &str, mac: MacAddr) {
        if let Some(names) = self.by_mac.get_mut(&mac) {
            names.remove(name);
            if names.is_empty() {
                self.by_mac.remove(&mac);
            }
        }
    }

    /// Indexes a record in force by address and MAC.
    pub(super) fn index(&mut self, name: &str, peer: &PeerRecord) {
        self.by_address.insert(peer.public_ip, name.to_owned());
        let names = self.by_mac.entry(peer.vxlan.vtep_mac).or_default();
        let rival = names.iter().find(|other| *other != name).cloned();
        if names.insert(name.to_owned()) && rival.is_some() {
            self.refusals.note(name, Rejection::DuplicateMac, rival);
        }
    }

    /// The accepted records other than `name` itself that overlap its subnet or have its
    /// address.
    pub(super) fn rivals(&self, name: &str, peer: &PeerRecord) -> Vec<(String, Rejection)> {
        let subnet = peer.subnet;
        // Those that begin inside, and the one that begins before and may reach in.
        let before = self.by_network.range(..subnet.network()).next_back();
        let overlapping = self
            .by_network
            .range(subnet.network()..=subnet.broadcast())
            .chain(before)
            .map(|(_, accepted)| accepted)
            .filter(|accepted| {
                let other = accepted.peer.subnet;
                accepted.name != name && (other.contains(&subnet) || subnet.contains(&other))
            });
        let mut rivals: Vec<_> = overlapping
            .map(|accepted| (accepted.name.clone(), Rejection::Overlap))
            .collect();
        let holder = self.by_address.get(&peer.public_ip);
        if let Some(holder) = holder.filter(|holder| **holder != name)
            && !rivals.iter().any(|(rival, _)| rival == holder)
        {
            rivals.push((holder.clone(), Rejection::DuplicateAddress));
        }
        rivals
    }

    pub(super) fn accept(
        &mut self,
        name: String,
        record: &Waiting,
        changes: &mut Vec<PeerChange>,
    ) -> bool {
        let Waiting {
            created,
            revision,
            peer,
        } = *record;
        let network = peer.subnet.network();
        let place = self.by_name.get(&name);
        let old = place.and_then(|place| self.by_network.get_mut(place));
        if let Some(accepted) = old.filter(|old| old.peer.subnet == peer.subnet) {
            let old = accepted.peer;
            // A record that became younger may now lose against a waiting one.
            let mut freed = created > accepted.created;
            accepted.created = created;
            accepted.revision = revision;
            if old == peer {
                self.index(&name, &peer);
                return freed;
            }
            if old.public_ip != peer.public_ip {
                freed |= self.release_address(&name);
            }
            if old.vxlan.vtep_mac != peer.vxlan.vtep_mac {
                self.release_mac(&name, old.vxlan.vtep_mac);
            }
            self.index(&name, &peer);
            let accepted = Accepted {
                name,
                created,
                revision,
                peer,
            };
            self.by_network.insert(network, accepted);
            changes.push(PeerChange::Updated { old, new: peer });
            return freed;
        }
        let freed = self.remove(&name, changes);
        self.index(&name, &peer);
        self.by_name.insert(name.clone(), network);
        let accepted = Accepted {
            name,
            created,
            revision,
            peer,
        };
        self.by_network.insert(network, accepted);
        changes.push(PeerChange::Added(peer));
        freed
    }

    pub(super) fn remove(&mut self, name: &str, changes: &mut Vec<PeerChange>) -> bool {
        self.release_address(name);
        let place = self.by_name.remove(name);
        let accepted = place.and_then(|place| self.by_network.remove(&place));
        let removed = accepted.is_some();
        if let Some(accepted) = &accepted {
            self.release_mac(name, accepted.peer.vxlan.vtep_mac);
        }
        changes.extend(accepted.map(|accepted| PeerChange::Removed(accepted.peer)));
        removed
    }

    /// After a subnet or an address became free: considers the waiting records, the oldest first.
    /// A record that one of them displaces is younger, and is considered after it.
    pub(super) fn reconsider(&mut self, changes: &mut Vec<PeerChange>) {
        let waiting = self.waiting.iter();
        let mut queue: BinaryHeap<_> = waiting
            .map(|(name, waiting)| Reverse((waiting.created, name.clone())))
            .collect();
        while let Some(Reverse((created, name))) = queue.pop() {
            let Some(waiting) = self.waiting.get(&name) else {
                continue;
            };
            let rivals = self.rivals(&name, &waiting.peer);
            let older = |(rival, _): &(String, _)| self.rank(rival) < (created, &name);
            if rivals.iter().any(older) {
                continue;
            }
            if let Some(waiting) = self.waiting.remove(&name) {
                self.refusals.forget(&name);
                self.place(name, waiting, changes);
            }
            for (rival, _) in rivals {
                if let Some(waiting) = self.waiting.get(&rival) {
                    queue.push(Reverse((waiting.created, rival)));
                }
            }
        }
    }
}
