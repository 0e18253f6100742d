//! The immutable route snapshot and its lookup.
//!
//! All leases of a network have the same prefix length (`SubnetLen`), so the number of a subnet
//! in the network is an index: a lookup is two loads, whatever the number of leases. Snapshots
//! share the pages of the index, so that a change copies one page and the list of pages. Leases
//! of another length, which other writers may leave behind, are kept apart and found by binary
//! search.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use super::peer::{PeerId, RemoteVtep};
use super::sources::Sources;

const PAGE_BITS: u32 = 8;
const PAGE_LEN: usize = 1 << PAGE_BITS;
/// Larger networks (more than 2^24 subnets, such as a /2 of /30s) have no index.
const MAX_INDEX_BITS: u32 = 24;

type PeerPage = [RemoteVtep; PAGE_LEN];

/// A snapshot of the routes. It never changes; [`RouteTable::with`] creates the next one.
#[derive(Debug, Clone)]
pub struct RouteTable {
    network: Ipv4Net,
    subnet_len: u8,
    base: u32,
    shift: u32,
    pages: Vec<Arc<PeerPage>>,
    /// Prefixes of another length or outside of the network: lists by prefix length, longest
    /// first, each sorted by address.
    irregular: Vec<(u8, Vec<(u32, RemoteVtep)>)>,
    sources: Sources,
    len: usize,
}

/// A change of the table: the new peer of a prefix, or its removal.
pub type Change = (Ipv4Net, Option<RemoteVtep>);

impl RouteTable {
    /// A table without routes for a network with subnets of this length.
    #[must_use]
    pub fn empty(network: Ipv4Net, subnet_len: u8) -> Self {
        let network = network.trunc();
        let bits = u32::from(subnet_len.min(32)).saturating_sub(u32::from(network.prefix_len()));
        let subnets = if (1..=MAX_INDEX_BITS).contains(&bits) {
            1usize << bits
        } else {
            0
        };
        let vacant = Arc::new([RemoteVtep::VACANT; PAGE_LEN]);
        Self {
            network,
            subnet_len,
            base: network.network().to_bits(),
            shift: 32 - u32::from(subnet_len.clamp(1, 32)),
            pages: vec![vacant; subnets.div_ceil(PAGE_LEN)],
            irregular: Vec::new(),
            sources: Sources::default(),
            len: 0,
        }
    }

    /// The peer whose subnet contains an address. Takes no lock and allocates nothing.
    #[must_use]
    #[inline]
    pub fn lookup(&self, destination: Ipv4Addr) -> Option<&RemoteVtep> {
        let number = (destination.to_bits().wrapping_sub(self.base) >> self.shift) as usize;
        if let Some(page) = self.pages.get(number >> PAGE_BITS) {
            let peer = &page[number & (PAGE_LEN - 1)];
            if !peer.is_vacant() {
                return Some(peer);
            }
        }
        if self.irregular.is_empty() {
            None
        } else {
            self.lookup_irregular(destination.to_bits())
        }
    }

    #[cold]
    fn lookup_irregular(&self, destination: u32) -> Option<&RemoteVtep> {
        self.irregular.iter().find_map(|(prefix_len, routes)| {
            let prefix = destination & mask(*prefix_len);
            let at = routes
                .binary_search_by_key(&prefix, |(network, _)| *network)
                .ok()?;
            Some(&routes[at].1)
        })
    }

    /// The next snapshot: this one with the changes applied in order. Removing an absent prefix
    /// has no effect.
    #[must_use]
    pub fn with(&self, changes: impl IntoIterator<Item = Change>) -> Self {
        let mut next = self.clone();
        let mut stale = Vec::new();
        for (prefix, peer) in changes {
            let prefix = prefix.trunc();
            let before = match next.slot(prefix) {
                Some(slot) => std::mem::replace(slot, peer.unwrap_or(RemoteVtep::VACANT)),
                None => next.change_irregular(prefix, peer),
            };
            stale.extend(next.sources.replace(&before, peer.as_ref()));
            match (before.is_vacant(), peer.is_none()) {
                (true, false) => next.len += 1,
                (false, true) => next.len -= 1,
                _ => {}
            }
        }
        // Rare: an address has two leases, and the newer one was removed.
        for (address, gone) in stale {
            if next.sources.get(address) != Some(gone) {
                continue;
            }
            let is_behind = |(_, peer): &(_, &RemoteVtep)| *peer.endpoint().ip() == address;
            let other = next.iter().find(is_behind).map(|(_, peer)| peer.id());
            if let Some(id) = other {
                next.sources.rename(address, id);
            }
        }
        next
    }

    fn slot(&mut self, prefix: Ipv4Net) -> Option<&mut RemoteVtep> {
        if prefix.prefix_len() != self.subnet_len || !self.network.contains(&prefix) {
            return None;
        }
        let number = ((prefix.network().to_bits() - self.base) >> self.shift) as usize;
        let page = self.pages.get_mut(number >> PAGE_BITS)?;
        Some(&mut Arc::make_mut(page)[number & (PAGE_LEN - 1)])
    }

    fn change_irregular(&mut self, prefix: Ipv4Net, peer: Option<RemoteVtep>) -> RemoteVtep {
        let (length, network) = (prefix.prefix_len(), prefix.network().to_bits());
        let at = match self.irregular.binary_search_by(|(len, _)| length.cmp(len)) {
            Ok(at) => at,
            Err(_) if peer.is_none() => return RemoteVtep::VACANT,
            Err(at) => {
                self.irregular.insert(at, (length, Vec::new()));
                at
            }
        };
        let routes = &mut self.irregular[at].1;
        let position = routes.binary_search_by_key(&network, |(known, _)| *known);
        let before = match (position, peer) {
            (Ok(i), Some(peer)) => std::mem::replace(&mut routes[i].1, peer),
            (Ok(i), None) => routes.remove(i).1,
            (Err(i), Some(peer)) => {
                routes.insert(i, (network, peer));
                RemoteVtep::VACANT
            }
            (Err(_), None) => RemoteVtep::VACANT,
        };
        if routes.is_empty() {
            self.irregular.remove(at);
        }
        before
    }

    /// The peer that sends from this address. If there are several, the one published last.
    #[must_use]
    #[inline]
    pub fn source(&self, address: Ipv4Addr) -> Option<PeerId> {
        self.sources.get(address)
    }

    /// The addresses that peers send from, each once.
    pub fn sources(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.sources.iter()
    }

    /// Number of routes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no routes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first address of the subnet that contains an address. In a peer's subnet it is that
    /// of the VTEP.
    #[must_use]
    pub fn subnet_address(&self, address: Ipv4Addr) -> Ipv4Addr {
        let mask = u32::MAX.checked_shl(self.shift).unwrap_or(0);
        Ipv4Addr::from_bits(address.to_bits() & mask)
    }

    /// All routes. It visits every slot of the index.
    pub fn iter(&self) -> impl Iterator<Item = (Ipv4Net, &RemoteVtep)> {
        let indexed = self.pages.iter().flat_map(|page| page.iter()).enumerate();
        let regular = indexed
            .filter(|(_, peer)| !peer.is_vacant())
            .filter_map(|(number, peer)| {
                let address = self.base + (u32::try_from(number).ok()? << self.shift);
                Some((
                    Ipv4Net::new(Ipv4Addr::from_bits(address), self.subnet_len).ok()?,
                    peer,
                ))
            });
        let irregular = self.irregular.iter().flat_map(|(length, routes)| {
            routes.iter().filter_map(|(network, peer)| {
                Some((
                    Ipv4Net::new(Ipv4Addr::from_bits(*network), *length).ok()?,
                    peer,
                ))
            })
        });
        regular.chain(irregular)
    }
}

const fn mask(prefix_len: u8) -> u32 {
    match 32 - prefix_len as u32 {
        32.. => 0,
        host_bits => u32::MAX << host_bits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::MacAddr;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::net::SocketAddrV4;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn peer(id: u32) -> RemoteVtep {
        let endpoint = SocketAddrV4::new(Ipv4Addr::from_bits(0xc000_0200 + id), 8472);
        RemoteVtep::new(endpoint, MacAddr([2, 0, 0, 0, 0, 1]), PeerId(id)).unwrap()
    }

    fn found(table: &RouteTable, address: &str) -> Option<u32> {
        table
            .lookup(address.parse().unwrap())
            .map(|peer| peer.id().0)
    }

    #[test]
    fn an_address_finds_its_subnet_and_no_other() {
        let empty = RouteTable::empty(net("172.20.0.0/16"), 24);
        let table = empty.with([
            (net("172.20.0.0/24"), Some(peer(1))),
            (net("172.20.255.0/24"), Some(peer(2))),
        ]);
        assert_eq!(found(&table, "172.20.0.0"), Some(1));
        assert_eq!(found(&table, "172.20.0.255"), Some(1));
        assert_eq!(found(&table, "172.20.1.0"), None);
        assert_eq!(found(&table, "172.20.255.7"), Some(2));
        assert_eq!(found(&table, "172.21.0.1"), None);
        assert_eq!(found(&table, "172.19.255.1"), None);
        assert_eq!(found(&table, "0.0.0.0"), None);
        assert!(
            empty.is_empty() && table.len() == 2,
            "a snapshot never changes"
        );
    }

    #[test]
    fn a_source_address_refers_to_a_peer_that_exists() {
        let peer = |id| {
            let endpoint = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 8472);
            RemoteVtep::new(endpoint, MacAddr([2; 6]), PeerId(id))
        };
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let (one, two) = (net("10.5.1.0/24"), net("10.5.2.0/24"));
        let both = RouteTable::empty(net("10.5.0.0/16"), 24).with([(one, peer(7)), (two, peer(9))]);
        assert_eq!(both.source(address), Some(PeerId(9)));
        assert_eq!(both.with([(one, None)]).source(address), Some(PeerId(9)));
        assert_eq!(both.with([(two, None)]).source(address), Some(PeerId(7)));
        let none = both.with([(two, None), (one, None)]);
        assert_eq!(none.source(address), None);
        let moved = both.with([(two, None), (two, peer(11))]);
        assert_eq!(moved.source(address), Some(PeerId(11)));
    }

    #[test]
    fn irregular_prefixes_are_found_longest_first() {
        let table = RouteTable::empty(net("10.0.0.0/8"), 24).with([
            (net("10.1.0.0/16"), Some(peer(1))),
            (net("10.1.2.0/25"), Some(peer(2))),
            (net("192.168.0.0/24"), Some(peer(3))),
        ]);
        assert_eq!(found(&table, "10.1.9.1"), Some(1));
        assert_eq!(found(&table, "10.1.2.1"), Some(2));
        assert_eq!(found(&table, "10.1.2.129"), Some(1));
        assert_eq!(found(&table, "192.168.0.9"), Some(3));
        let fewer = table.with([(net("10.1.0.0/16"), None), (net("10.9.0.0/16"), None)]);
        assert_eq!(found(&fewer, "10.1.9.1"), None);
        assert_eq!(fewer.len(), 2);
    }

    #[test]
    fn networks_too_large_for_an_index_still_route() {
        for (network, length) in [("0.0.0.0/0", 30), ("10.0.0.0/24", 24), ("0.0.0.0/0", 0)] {
            let subnet = Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), length)
                .unwrap()
                .trunc();
            let table = RouteTable::empty(net(network), length).with([(subnet, Some(peer(7)))]);
            assert_eq!(found(&table, "10.0.0.1"), Some(7), "{network} in /{length}");
        }
    }

    #[test]
    fn unchanged_pages_are_shared_between_snapshots() {
        let table =
            RouteTable::empty(net("10.0.0.0/8"), 24).with([(net("10.0.0.0/24"), Some(peer(1)))]);
        let next = table.with([(net("10.255.0.0/24"), Some(peer(2)))]);
        let shared = table
            .pages
            .iter()
            .zip(&next.pages)
            .filter(|(a, b)| Arc::ptr_eq(a, b))
            .count();
        assert_eq!(shared, table.pages.len() - 1);
    }

    proptest! {
        #[test]
        fn behaves_as_a_map_of_prefixes(
            changes in proptest::collection::vec((0u32..70_000, 20u8..28, 0u32..4), 0..200),
            probes in proptest::collection::vec(0u32..70_000u32, 50),
        ) {
            let network = net("10.3.0.0/16");
            let mut table = RouteTable::empty(network, 24);
            let mut model: HashMap<Ipv4Net, u32> = HashMap::new();
            for (offset, length, id) in changes {
                let address = Ipv4Addr::from_bits(network.network().to_bits() + offset);
                let prefix = Ipv4Net::new(address, length).unwrap().trunc();
                if id == 0 { model.remove(&prefix); } else { model.insert(prefix, id); }
                table = table.with([(prefix, (id != 0).then(|| peer(id)))]);
            }
            prop_assert_eq!(table.len(), model.len());
            let listed: HashMap<_, _> = table.iter().map(|(prefix, peer)| (prefix, peer.id().0)).collect();
            prop_assert_eq!(&listed, &model);
            for probe in probes {
                let address = Ipv4Addr::from_bits(network.network().to_bits() + probe);
                // The configured length wins over longer irregular ones: leases never overlap, see `subnet`.
                let regular = model.get(&Ipv4Net::new(address, 24).unwrap().trunc());
                let inside = network.contains(&address);
                let longest = model.iter().filter(|(p, _)| p.contains(&address))
                    .max_by_key(|(p, _)| p.prefix_len()).map(|(_, id)| id);
                let expected = regular.filter(|_| inside).or(longest);
                prop_assert_eq!(table.lookup(address).map(|peer| peer.id().0), expected.copied());
            }
        }
    }
}
