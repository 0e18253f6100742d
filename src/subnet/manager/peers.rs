//! The set of the other hosts' leases: pure, fed with the store's records.

mod conflicts;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnet::Ipv4Net;

use super::super::key::SubnetKey;
use super::super::store::{Listing, Record};
use super::super::validate::{Context, PeerRecord, Rejection, check};
use super::refusals::Refusals;
pub use super::refusals::Refused;
use crate::wire::MacAddr;

/// The shortest prefix that `--mixed-lengths` accepts.
pub(super) const SHORTEST_MIXED: u8 = 8;

/// Accepted peers: one network's leases, and a bound on memory.
const MAX_PEERS: usize = 65_536;

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
    created: i64,
    revision: i64,
    peer: PeerRecord,
}

/// A valid record that conflicts with an older one.
#[derive(Debug)]
struct Waiting {
    created: i64,
    revision: i64,
    peer: PeerRecord,
}

/// How a list differs from the known peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingPeers {
    /// Peers that are not in the list.
    pub missing: usize,
    /// Peers whose records were created anew since: in a store that was wiped, all of them.
    pub recreated: usize,
    /// Known peers.
    pub known: usize,
}

/// The peers, by the records they come from.
///
/// A record that `check` refuses affects only itself; if its earlier content was valid, that
/// stays in force. Of two records that overlap or have the same public address, the older one
/// wins, whichever was seen first: nodes that started at different times must agree. The other
/// one waits until the winner is removed. A record in force that is changed to an older one's
/// address waits with the new content, and the earlier content stays in force. A MAC in two
/// records is only logged.
#[derive(Debug)]
pub struct PeerSet {
    own_subnet: Ipv4Net,
    own_name: String,
    own_ip: Ipv4Addr,
    context: Context,
    /// Accepted peers are disjoint, so the network address identifies them.
    by_network: BTreeMap<Ipv4Addr, Accepted>,
    by_name: BTreeMap<String, Ipv4Addr>,
    /// The record that has a public address.
    by_address: HashMap<Ipv4Addr, String>,
    by_mac: HashMap<MacAddr, BTreeSet<String>>,
    own_mac: Option<MacAddr>,
    lengths: RangeInclusive<u8>,
    protected: Vec<Ipv4Addr>,
    waiting: BTreeMap<String, Waiting>,
    refusals: Refusals,
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
            refusals: Refusals::default(),
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

    /// Accepts subnets of any sensible prefix length: /8 and longer.
    #[must_use]
    pub fn with_mixed_lengths(mut self) -> Self {
        self.lengths = SHORTEST_MIXED..=31;
        self
    }

    /// Refuses subnets that contain one of these addresses: this host's own outside the overlay,
    /// its gateway, the store's endpoints.
    #[must_use]
    pub fn with_protected(mut self, addresses: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        self.protected.extend(addresses);
        self
    }

    /// This host has a new public address: a peer with that address is removed.
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
            self.refusals.refuse(&name, 0, Rejection::OwnAddress, None);
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
    pub(crate) fn peer(&self, network: Ipv4Addr) -> Option<&PeerRecord> {
        self.by_network.get(&network).map(|accepted| &accepted.peer)
    }

    /// Records that are currently refused, with the reason; bounded to a few thousand.
    pub fn refused(&self) -> impl Iterator<Item = &Refused> {
        self.refusals.all()
    }

    /// How often a record was refused since the start.
    #[must_use]
    pub fn refused_total(&self) -> u64 {
        self.refusals.counts().values().sum()
    }

    /// How often a record was refused since the start, by reason; reasons that never
    /// occurred are absent.
    #[must_use]
    pub fn refused_by_reason(&self) -> &BTreeMap<Rejection, u64> {
        self.refusals.counts()
    }

    /// What a complete list would remove. A removal interrupts traffic, so the caller may want to
    /// list again first.
    #[must_use]
    pub fn missing_in(&self, listing: &Listing) -> MissingPeers {
        let records = listing.records.iter();
        let created: HashMap<&str, i64> = records
            .map(|record| (record.name.as_str(), record.created))
            .collect();
        let mut found = MissingPeers {
            missing: 0,
            recreated: 0,
            known: self.by_network.len(),
        };
        for accepted in self.by_network.values() {
            match created.get(accepted.name.as_str()) {
                None => found.missing += 1,
                Some(created) if *created != accepted.created => found.recreated += 1,
                Some(_) => {}
            }
        }
        found
    }

    /// Applies a list without removing peers that are missing in it.
    pub fn add_all(&mut self, listing: Listing) -> Vec<PeerChange> {
        let mut changes = Vec::new();
        self.take_in(listing, &mut changes);
        changes
    }

    /// Refusals since the last call, for the log.
    pub(crate) fn take_news(&mut self) -> Vec<Refused> {
        self.refusals.take_news()
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

    /// Applies a complete list.
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
        self.refusals.forget_all();
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
        // Addresses may have moved between two lists: a record that has another one now must not
        // hold back the new owner.
        self.by_address.clear();
        for record in records {
            self.consider(record, changes);
        }
        self.reconsider(changes);
        // Records that are missing in the list, or were refused, keep the remaining addresses.
        for accepted in self.by_network.values() {
            let holder = self.by_address.entry(accepted.peer.public_ip);
            if !self.waiting.contains_key(&accepted.name) {
                holder.or_insert_with(|| accepted.name.clone());
            }
        }
    }

    /// Checks one record and accepts it unless it conflicts with an older one; `true` if a subnet
    /// or an address may have become free.
    fn consider(&mut self, record: Record, changes: &mut Vec<PeerChange>) -> bool {
        let Record {
            name,
            value,
            created,
            revision,
            ..
        } = record;
        self.forget(&name);
        if name == self.own_name {
            return false;
        }
        let checked = check(&name, &value, &self.context).and_then(|peer| self.not_us(peer));
        let room = self.by_name.len() < MAX_PEERS || self.by_name.contains_key(&name);
        let checked = checked.and_then(|peer| room.then_some(peer).ok_or(Rejection::TooMany));
        match checked {
            Ok(peer) => self.place(
                name,
                Waiting {
                    created,
                    revision,
                    peer,
                },
                changes,
            ),
            Err(reason) => {
                self.refusals.refuse(&name, revision, reason, None);
                false
            }
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

    fn forget(&mut self, name: &str) {
        self.waiting.remove(name);
        self.refusals.forget(name);
    }
}

fn names(listing: &Listing) -> BTreeSet<&str> {
    let names = listing.records.iter().map(|record| record.name.as_str());
    names.collect()
}
