//! The set of the other hosts' leases: pure, fed with what the store tells.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::super::key::SubnetKey;
use super::super::store::{Listing, Record};
use super::super::validate::{Context, PeerRecord, Rejection, check};

/// Refused and waiting records that are remembered; what goes beyond is only counted, so
/// that a store full of rubbish does not fill the memory.
const MAX_REMEMBERED: usize = 4096;

/// A change to the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerChange {
    /// A new peer.
    Added(PeerRecord),
    /// A peer of the same record with other content.
    Updated {
        /// As it was.
        old: PeerRecord,
        /// As it is.
        new: PeerRecord,
    },
    /// A peer is gone: deleted, expired or absent from a complete list.
    Removed(PeerRecord),
}

#[derive(Debug)]
struct Accepted {
    name: String,
    peer: PeerRecord,
}

/// A record that is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: Rejection,
    /// The record that it overlaps, if it is another host's.
    pub rival: Option<String>,
}

/// A good record that overlaps an accepted one.
#[derive(Debug)]
struct Waiting {
    created: i64,
    peer: PeerRecord,
}

/// The peers, by the records they come from.
///
/// A record that `check` refuses affects only itself; if its earlier content was good,
/// that stays in force. Of two records that overlap, the one accepted first wins, in a
/// list the older one; the other waits until the winner goes.
#[derive(Debug)]
pub struct PeerSet {
    own_subnet: Ipv4Net,
    own_name: String,
    own_ip: Ipv4Addr,
    context: Context,
    /// Accepted peers are disjoint, so the network address tells them apart.
    by_network: BTreeMap<Ipv4Addr, Accepted>,
    by_name: BTreeMap<String, Ipv4Addr>,
    waiting: BTreeMap<String, Waiting>,
    refused: BTreeMap<String, Refused>,
    refused_total: u64,
    news: Vec<Refused>,
}

impl PeerSet {
    /// An empty set of the host that has `own_subnet` and `own_ip`. Records are
    /// checked against `context`.
    pub fn new(own_subnet: Ipv4Net, own_ip: Ipv4Addr, context: Context) -> Self {
        Self {
            own_subnet,
            own_name: SubnetKey::from(own_subnet).to_string(),
            own_ip,
            context,
            by_network: BTreeMap::new(),
            by_name: BTreeMap::new(),
            waiting: BTreeMap::new(),
            refused: BTreeMap::new(),
            refused_total: 0,
            news: Vec::new(),
        }
    }

    /// The peers, by address.
    pub fn peers(&self) -> impl Iterator<Item = &PeerRecord> {
        self.by_network.values().map(|accepted| &accepted.peer)
    }

    /// Records that are refused now, with the reason; no more than some thousand.
    pub fn refused(&self) -> impl Iterator<Item = &Refused> {
        self.refused.values()
    }

    /// How often a record was refused since the start.
    #[must_use]
    pub fn refused_total(&self) -> u64 {
        self.refused_total
    }

    /// Refusals since the last call, for the log.
    pub fn take_news(&mut self) -> Vec<Refused> {
        std::mem::take(&mut self.news)
    }

    /// A record was written.
    pub fn put(&mut self, record: Record) -> Vec<PeerChange> {
        let mut changes = Vec::new();
        if self.consider(record, &mut changes) {
            self.reconsider(&mut changes);
        }
        changes
    }

    /// A record is gone.
    pub fn delete(&mut self, name: &str) -> Vec<PeerChange> {
        let mut changes = Vec::new();
        self.forget(name);
        if self.remove(name, &mut changes) {
            self.reconsider(&mut changes);
        }
        changes
    }

    /// A complete list: what is absent is gone, what differs is changed.
    pub fn resync(&mut self, listing: Listing) -> Vec<PeerChange> {
        let mut changes = Vec::new();
        let present: BTreeSet<&str> = listing
            .records
            .iter()
            .map(|record| record.name.as_str())
            .collect();
        let gone: Vec<_> = self
            .by_name
            .keys()
            .filter(|name| !present.contains(name.as_str()))
            .cloned()
            .collect();
        self.waiting.clear();
        self.refused.clear();
        for name in gone {
            self.remove(&name, &mut changes);
        }
        let mut records = listing.records;
        records.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        for record in records {
            self.consider(record, &mut changes);
        }
        self.reconsider(&mut changes);
        changes
    }

    /// Checks one record and accepts it if nothing stands against it; `true` if an
    /// accepted peer gave up its place.
    fn consider(&mut self, record: Record, changes: &mut Vec<PeerChange>) -> bool {
        let Record {
            name,
            value,
            created,
            ..
        } = record;
        self.forget(&name);
        if name == self.own_name {
            return false;
        }
        let checked = check(&name, &value, &self.context).and_then(|peer| self.not_us(peer));
        let peer = match checked {
            Ok(peer) => peer,
            Err(reason) => {
                self.refuse(name, reason, None);
                return false;
            }
        };
        if let Some(rival) = self.rival(&name, peer.subnet).map(str::to_owned) {
            // Only a name that can stand for several subnets gets here with a peer.
            let freed = self.remove(&name, changes);
            if self.waiting.len() < MAX_REMEMBERED {
                self.waiting.insert(name.clone(), Waiting { created, peer });
            }
            self.refuse(name, Rejection::Overlap, Some(rival));
            return freed;
        }
        self.accept(name, peer, changes)
    }

    fn not_us(&self, peer: PeerRecord) -> Result<PeerRecord, Rejection> {
        let subnet = peer.subnet;
        if subnet.contains(&self.own_subnet) || self.own_subnet.contains(&subnet) {
            return Err(Rejection::Overlap);
        }
        if peer.public_ip == self.own_ip {
            return Err(Rejection::OwnAddress);
        }
        Ok(peer)
    }

    /// The accepted record, other than `name` itself, that overlaps `subnet`.
    fn rival(&self, name: &str, subnet: Ipv4Net) -> Option<&str> {
        let last = subnet.broadcast();
        // Those that begin inside, and the one that begins before and may reach in.
        let before = self.by_network.range(..subnet.network()).next_back();
        self.by_network
            .range(subnet.network()..=last)
            .chain(before)
            .map(|(_, accepted)| accepted)
            .find(|accepted| {
                let other = accepted.peer.subnet;
                accepted.name != name && (other.contains(&subnet) || subnet.contains(&other))
            })
            .map(|accepted| accepted.name.as_str())
    }

    fn accept(&mut self, name: String, peer: PeerRecord, changes: &mut Vec<PeerChange>) -> bool {
        let network = peer.subnet.network();
        let old = self
            .by_name
            .get(&name)
            .and_then(|place| self.by_network.get_mut(place));
        if let Some(accepted) = old
            && accepted.peer.subnet == peer.subnet
        {
            if accepted.peer != peer {
                let old = std::mem::replace(&mut accepted.peer, peer);
                changes.push(PeerChange::Updated { old, new: peer });
            }
            return false;
        }
        let freed = self.remove(&name, changes);
        self.by_name.insert(name.clone(), network);
        self.by_network.insert(network, Accepted { name, peer });
        changes.push(PeerChange::Added(peer));
        freed
    }

    fn remove(&mut self, name: &str, changes: &mut Vec<PeerChange>) -> bool {
        let place = self.by_name.remove(name);
        let accepted = place.and_then(|place| self.by_network.remove(&place));
        let removed = accepted.is_some();
        changes.extend(accepted.map(|accepted| PeerChange::Removed(accepted.peer)));
        removed
    }

    fn forget(&mut self, name: &str) {
        self.waiting.remove(name);
        self.refused.remove(name);
    }

    fn refuse(&mut self, name: String, reason: Rejection, rival: Option<String>) {
        self.refused_total += 1;
        let refused = Refused {
            name: name.clone(),
            reason,
            rival,
        };
        if self.news.len() < MAX_REMEMBERED {
            self.news.push(refused.clone());
        }
        if self.refused.len() < MAX_REMEMBERED {
            self.refused.insert(name, refused);
        }
    }

    /// A place became free: the oldest of those that wait for it takes it.
    fn reconsider(&mut self, changes: &mut Vec<PeerChange>) {
        let mut order: Vec<_> = self
            .waiting
            .iter()
            .map(|(name, waiting)| (waiting.created, name.clone()))
            .collect();
        order.sort();
        for (_, name) in order {
            let free = self
                .waiting
                .get(&name)
                .is_some_and(|waiting| self.rival(&name, waiting.peer.subnet).is_none());
            if !free {
                continue;
            }
            if let Some(waiting) = self.waiting.remove(&name) {
                self.refused.remove(&name);
                self.accept(name, waiting.peer, changes);
            }
        }
    }
}
