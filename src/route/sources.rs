//! The public addresses of peers, as a sorted list.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::peer::{PeerId, RemoteVtep};

/// An address, the number of subnets behind it, and the peer of the newest of them.
#[derive(Debug, Clone, Copy)]
struct Source {
    address: u32,
    subnets: u32,
    peer: PeerId,
}

/// Sorted by address. Clones share the list; a change copies it, 12 bytes per peer.
#[derive(Debug, Clone, Default)]
pub(super) struct Sources(Arc<Vec<Source>>);

impl Sources {
    /// The peer that has this address.
    #[inline]
    pub(super) fn get(&self, address: Ipv4Addr) -> Option<PeerId> {
        let at = self.search(address.to_bits()).ok()?;
        Some(self.0[at].peer)
    }

    /// All addresses in ascending order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.0
            .iter()
            .map(|source| Ipv4Addr::from_bits(source.address))
    }

    /// A subnet moved from one peer to another. If the old peer's address has more subnets and
    /// still refers to the old peer, which may be gone, returns both: the caller then has to
    /// call [`Self::rename`].
    pub(super) fn replace(
        &mut self,
        before: &RemoteVtep,
        after: Option<&RemoteVtep>,
    ) -> Option<(Ipv4Addr, PeerId)> {
        let is_same = after.is_some_and(|after| {
            before.endpoint().ip() == after.endpoint().ip() && before.id() == after.id()
        });
        if is_same {
            return None;
        }
        if let Some(after) = after {
            self.add(after);
        }
        let address = *before.endpoint().ip();
        let is_stale = !before.is_vacant()
            && self.remove(address.to_bits())
            && self.get(address) == Some(before.id());
        is_stale.then_some((address, before.id()))
    }

    /// Changes the peer of an address.
    pub(super) fn rename(&mut self, address: Ipv4Addr, peer: PeerId) {
        if let Ok(at) = self.search(address.to_bits()) {
            Arc::make_mut(&mut self.0)[at].peer = peer;
        }
    }

    fn search(&self, address: u32) -> Result<usize, usize> {
        self.0
            .binary_search_by_key(&address, |source| source.address)
    }

    fn add(&mut self, peer: &RemoteVtep) {
        let address = peer.endpoint().ip().to_bits();
        let position = self.search(address);
        let list = Arc::make_mut(&mut self.0);
        match position {
            Ok(at) => {
                list[at].subnets += 1;
                list[at].peer = peer.id();
            }
            Err(at) => list.insert(
                at,
                Source {
                    address,
                    subnets: 1,
                    peer: peer.id(),
                },
            ),
        }
    }

    /// Returns whether the address has more subnets.
    fn remove(&mut self, address: u32) -> bool {
        let Ok(at) = self.search(address) else {
            return false;
        };
        let list = Arc::make_mut(&mut self.0);
        list[at].subnets -= 1;
        let is_last = list[at].subnets == 0;
        if is_last {
            list.remove(at);
        }
        !is_last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::MacAddr;
    use std::net::SocketAddrV4;

    fn peer(last: u8) -> RemoteVtep {
        let endpoint = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, last), 8472);
        RemoteVtep::new(endpoint, MacAddr([2, 0, 0, 0, 0, last]), PeerId(0)).unwrap()
    }

    #[test]
    fn an_address_is_known_as_long_as_it_has_a_subnet() {
        let mut sources = Sources::default();
        let known = |sources: &Sources, last| sources.get(Ipv4Addr::new(192, 0, 2, last)).is_some();
        sources.replace(&RemoteVtep::VACANT, Some(&peer(1)));
        sources.replace(&RemoteVtep::VACANT, Some(&peer(1)));
        let snapshot = sources.clone();
        sources.replace(&peer(1), Some(&peer(2)));
        assert!(known(&sources, 1) && known(&sources, 2));
        sources.replace(&peer(1), None);
        assert!(!known(&sources, 1) && known(&sources, 2));
        sources.replace(&RemoteVtep::VACANT, None);
        assert!(
            known(&snapshot, 1) && !known(&snapshot, 2),
            "snapshots do not change"
        );
    }

    #[test]
    fn the_peer_of_an_address_is_found() {
        let mut sources = Sources::default();
        let numbered = |id| {
            let endpoint = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 8472);
            RemoteVtep::new(endpoint, MacAddr([2; 6]), PeerId(id)).unwrap()
        };
        sources.replace(&RemoteVtep::VACANT, Some(&numbered(7)));
        assert_eq!(sources.get(Ipv4Addr::new(192, 0, 2, 1)), Some(PeerId(7)));
        sources.replace(&numbered(7), Some(&numbered(9)));
        assert_eq!(sources.get(Ipv4Addr::new(192, 0, 2, 1)), Some(PeerId(9)));
        assert_eq!(sources.get(Ipv4Addr::new(192, 0, 2, 2)), None);
        sources.replace(&numbered(9), None);
        assert_eq!(sources.get(Ipv4Addr::new(192, 0, 2, 1)), None);
    }
}
