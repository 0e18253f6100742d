//! From where peers send: their public addresses, as a sorted list.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::peer::Peer;

/// Addresses with the number of subnets behind each. A clone shares the list; a change
/// copies it, 8 bytes for each peer.
#[derive(Debug, Clone, Default)]
pub(super) struct Sources(Arc<Vec<(u32, u32)>>);

impl Sources {
    /// Whether some subnet lies behind this address.
    #[inline]
    pub(super) fn contains(&self, address: Ipv4Addr) -> bool {
        self.place(address.to_bits()).is_ok()
    }

    /// All addresses, rising.
    pub(super) fn iter(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.0
            .iter()
            .map(|(address, _)| Ipv4Addr::from_bits(*address))
    }

    /// A subnet moved from behind one peer to behind another.
    pub(super) fn replace(&mut self, before: &Peer, after: Option<&Peer>) {
        let old = (!before.is_vacant()).then(|| before.endpoint().ip().to_bits());
        let new = after.map(|peer| peer.endpoint().ip().to_bits());
        if old == new {
            return;
        }
        if let Some(old) = old {
            self.remove(old);
        }
        if let Some(new) = new {
            self.add(new);
        }
    }

    fn place(&self, address: u32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&address, |(known, _)| *known)
    }

    fn add(&mut self, address: u32) {
        let place = self.place(address);
        let list = Arc::make_mut(&mut self.0);
        match place {
            Ok(at) => list[at].1 += 1,
            Err(at) => list.insert(at, (address, 1)),
        }
    }

    fn remove(&mut self, address: u32) {
        let Ok(at) = self.place(address) else { return };
        let list = Arc::make_mut(&mut self.0);
        list[at].1 -= 1;
        if list[at].1 == 0 {
            list.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::peer::PeerId;
    use crate::wire::MacAddr;
    use std::net::SocketAddrV4;

    fn peer(last: u8) -> Peer {
        let endpoint = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, last), 8472);
        Peer::new(endpoint, MacAddr([2, 0, 0, 0, 0, last]), PeerId(0)).unwrap()
    }

    #[test]
    fn an_address_is_known_as_long_as_one_subnet_is_behind_it() {
        let mut sources = Sources::default();
        let known = |sources: &Sources, last| sources.contains(Ipv4Addr::new(192, 0, 2, last));
        sources.replace(&Peer::VACANT, Some(&peer(1)));
        sources.replace(&Peer::VACANT, Some(&peer(1)));
        let snapshot = sources.clone();
        sources.replace(&peer(1), Some(&peer(2)));
        assert!(known(&sources, 1) && known(&sources, 2));
        sources.replace(&peer(1), None);
        assert!(!known(&sources, 1) && known(&sources, 2));
        sources.replace(&Peer::VACANT, None);
        assert!(
            known(&snapshot, 1) && !known(&snapshot, 2),
            "snapshots stay"
        );
    }
}
