//! The set of the other hosts' leases: pure, fed with what the store tells.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnet::Ipv4Net;

use super::super::key::SubnetKey;
use super::super::store::{Listing, Record};
use super::super::validate::{Context, PeerRecord, Rejection, check};
use crate::wire::MacAddr;

/// Refused and waiting records that are remembered; what goes beyond is only counted, so
/// that a store full of rubbish does not fill the memory.
const MAX_REMEMBERED: usize = 4096;

/// Accepted peers: one network's leases, and a bound on memory.
const MAX_PEERS: usize = 65_536;
/// Longest name that is kept of a refused record; a lease's own is never longer.
const MAX_NAME: usize = 100;

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
    /// The record that it collides with, if it is another host's.
    pub rival: Option<String>,
}

/// A good record that collides with an accepted one.
#[derive(Debug)]
struct Waiting {
    created: i64,
    peer: PeerRecord,
}

/// The peers, by the records they come from.
///
/// Two records with one public address collide likewise; what an earlier content of the
/// waiting record brought stays in force. A MAC that two records have is only noted.
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
    /// Which record a public address belongs to.
    by_address: HashMap<Ipv4Addr, String>,
    by_mac: HashMap<MacAddr, BTreeSet<String>>,
    own_mac: Option<MacAddr>,
    lengths: RangeInclusive<u8>,
    protected: Vec<Ipv4Addr>,
    waiting: BTreeMap<String, Waiting>,
    refused: BTreeMap<String, Refused>,
    counts: BTreeMap<Rejection, u64>,
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
            by_address: HashMap::new(),
            by_mac: HashMap::new(),
            own_mac: None,
            lengths: 1..=31,
            protected: Vec::new(),
            waiting: BTreeMap::new(),
            refused: BTreeMap::new(),
            counts: BTreeMap::new(),
            news: Vec::new(),
        }
    }

    /// Refuses records with our own VTEP MAC too.
    #[must_use]
    pub fn with_own_mac(mut self, mac: MacAddr) -> Self {
        self.own_mac = Some(mac);
        self
    }

    /// Refuses subnets of another prefix length than this, the network config's `SubnetLen`.
    #[must_use]
    pub fn with_subnet_len(mut self, subnet_len: u8) -> Self {
        self.lengths = subnet_len..=subnet_len;
        self
    }

    /// Takes subnets of any sensible prefix length: /8 and longer.
    #[must_use]
    pub fn with_mixed_lengths(mut self) -> Self {
        self.lengths = 8..=31;
        self
    }

    /// Refuses subnets that hold one of these addresses: this host's own outside the
    /// overlay, its gateway, its resolvers, the store's endpoints.
    #[must_use]
    pub fn with_protected(mut self, addresses: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        self.protected.extend(addresses);
        self
    }

    /// This host has another public address: a peer that claims it is out.
    pub fn set_own_address(&mut self, own_ip: Ipv4Addr) -> Vec<PeerChange> {
        let old = std::mem::replace(&mut self.own_ip, own_ip);
        for address in &mut self.protected {
            if *address == old {
                *address = own_ip;
            }
        }
        let mut changes = Vec::new();
        let claimed = self.by_address.get(&own_ip).cloned();
        if let Some(name) = claimed {
            self.refuse(name.clone(), Rejection::OwnAddress, None);
            if self.remove(&name, &mut changes) {
                self.reconsider(&mut changes);
            }
        }
        changes
    }

    /// The peers, by address.
    pub fn peers(&self) -> impl Iterator<Item = &PeerRecord> {
        self.by_network.values().map(|accepted| &accepted.peer)
    }

    /// The accepted peer whose subnet begins with this address.
    pub fn peer(&self, network: Ipv4Addr) -> Option<&PeerRecord> {
        self.by_network.get(&network).map(|accepted| &accepted.peer)
    }

    /// Records that are refused now, with the reason; no more than some thousand.
    pub fn refused(&self) -> impl Iterator<Item = &Refused> {
        self.refused.values()
    }

    /// How often a record was refused since the start.
    #[must_use]
    pub fn refused_total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// How often a record was refused since the start, by reason; reasons that never
    /// occurred are absent.
    #[must_use]
    pub fn refused_by_reason(&self) -> &BTreeMap<Rejection, u64> {
        &self.counts
    }

    /// Records in force whose VTEP MAC another one has too: flannel's kernel hosts send
    /// to one of them only.
    pub fn shared_macs(&self) -> impl Iterator<Item = (MacAddr, &BTreeSet<String>)> {
        let shared = self.by_mac.iter().filter(|(_, names)| names.len() > 1);
        shared.map(|(mac, names)| (*mac, names))
    }

    /// How many peers a complete list would remove, and of how many. Removals are what
    /// cannot be taken back, so the caller may want to look twice.
    #[must_use]
    pub fn missing_in(&self, listing: &Listing) -> (usize, usize) {
        let present = names(listing);
        let missing = self
            .by_name
            .keys()
            .filter(|name| !present.contains(name.as_str()));
        (missing.count(), self.by_name.len())
    }

    /// Takes in a list without removing what it lacks.
    pub fn add_all(&mut self, listing: Listing) -> Vec<PeerChange> {
        let mut changes = Vec::new();
        self.take_in(listing, &mut changes);
        changes
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
        let present = names(&listing);
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
        self.take_in(listing, &mut changes);
        changes
    }

    /// Considers all records, older ones first.
    fn take_in(&mut self, listing: Listing, changes: &mut Vec<PeerChange>) {
        let mut records = listing.records;
        records.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        // Addresses may have changed hands between two lists: none is held back by a
        // record that has another one now.
        self.by_address.clear();
        for record in records {
            self.consider(record, changes);
        }
        self.reconsider(changes);
        // Records that the list lacks, or that were refused, keep what is left.
        for accepted in self.by_network.values() {
            let holder = self.by_address.entry(accepted.peer.public_ip);
            if !self.waiting.contains_key(&accepted.name) {
                holder.or_insert_with(|| accepted.name.clone());
            }
        }
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
        let room = self.by_name.len() < MAX_PEERS || self.by_name.contains_key(&name);
        let checked = checked.and_then(|peer| room.then_some(peer).ok_or(Rejection::TooMany));
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
        let holder = self.by_address.get(&peer.public_ip);
        if let Some(holder) = holder.filter(|holder| **holder != name).cloned() {
            let freed = self.release_address(&name);
            if self.waiting.len() < MAX_REMEMBERED {
                self.waiting.insert(name.clone(), Waiting { created, peer });
            }
            self.refuse(name, Rejection::DuplicateAddress, Some(holder));
            return freed;
        }
        self.accept(name, peer, changes)
    }

    /// A record that has another address now no longer holds the one in force.
    fn release_address(&mut self, name: &str) -> bool {
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

    fn release_mac(&mut self, name: &str, mac: MacAddr) {
        if let Some(names) = self.by_mac.get_mut(&mac) {
            names.remove(name);
            if names.is_empty() {
                self.by_mac.remove(&mac);
            }
        }
    }

    /// Notes whose address and MAC these are now.
    fn claim(&mut self, name: &str, peer: &PeerRecord) {
        self.by_address.insert(peer.public_ip, name.to_owned());
        let names = self.by_mac.entry(peer.vxlan.vtep_mac).or_default();
        let rival = names.iter().find(|other| *other != name).cloned();
        if names.insert(name.to_owned()) && rival.is_some() {
            self.count(Rejection::DuplicateMac);
            self.tell(Refused {
                name: name.to_owned(),
                reason: Rejection::DuplicateMac,
                rival,
            });
        }
    }

    fn not_us(&self, peer: PeerRecord) -> Result<PeerRecord, Rejection> {
        let subnet = peer.subnet;
        if subnet.contains(&self.own_subnet) || self.own_subnet.contains(&subnet) {
            return Err(Rejection::Overlap);
        }
        if peer.public_ip == self.own_ip {
            return Err(Rejection::OwnAddress);
        }
        if self.own_mac == Some(peer.vxlan.vtep_mac) {
            return Err(Rejection::OwnMac);
        }
        if !self.lengths.contains(&subnet.prefix_len()) {
            return Err(Rejection::PrefixLen);
        }
        if self
            .protected
            .iter()
            .any(|address| subnet.contains(address))
        {
            return Err(Rejection::Protected);
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
        let place = self.by_name.get(&name);
        let old = place.and_then(|place| Some(self.by_network.get(place)?.peer));
        if let Some(old) = old.filter(|old| old.subnet == peer.subnet) {
            if old == peer {
                self.claim(&name, &peer);
                return false;
            }
            let mut freed = false;
            if old.public_ip != peer.public_ip {
                freed = self.release_address(&name);
            }
            if old.vxlan.vtep_mac != peer.vxlan.vtep_mac {
                self.release_mac(&name, old.vxlan.vtep_mac);
            }
            self.claim(&name, &peer);
            self.by_network.insert(network, Accepted { name, peer });
            changes.push(PeerChange::Updated { old, new: peer });
            return freed;
        }
        let freed = self.remove(&name, changes);
        self.claim(&name, &peer);
        self.by_name.insert(name.clone(), network);
        self.by_network.insert(network, Accepted { name, peer });
        changes.push(PeerChange::Added(peer));
        freed
    }

    fn remove(&mut self, name: &str, changes: &mut Vec<PeerChange>) -> bool {
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

    fn forget(&mut self, name: &str) {
        self.waiting.remove(name);
        self.refused.remove(shortened(name));
    }

    fn count(&mut self, reason: Rejection) {
        *self.counts.entry(reason).or_default() += 1;
    }

    fn tell(&mut self, refused: Refused) {
        if self.news.len() < MAX_REMEMBERED {
            self.news.push(refused);
        }
    }

    fn refuse(&mut self, name: String, reason: Rejection, rival: Option<String>) {
        self.count(reason);
        let name = shortened(&name).to_owned();
        let refused = Refused {
            name: name.clone(),
            reason,
            rival,
        };
        self.tell(refused.clone());
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
            let free = self.waiting.get(&name).is_some_and(|waiting| {
                let holder = self.by_address.get(&waiting.peer.public_ip);
                self.rival(&name, waiting.peer.subnet).is_none()
                    && holder.is_none_or(|holder| *holder == name)
            });
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

fn names(listing: &Listing) -> BTreeSet<&str> {
    let names = listing.records.iter().map(|record| record.name.as_str());
    names.collect()
}

/// As much of a name as is kept and shown.
fn shortened(name: &str) -> &str {
    let end = (0..=MAX_NAME.min(name.len()))
        .rev()
        .find(|end| name.is_char_boundary(*end));
    &name[..end.unwrap_or(0)]
}
