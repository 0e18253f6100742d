//! Who may send what: the tunnel sees outer and inner header together, so it can hold a peer
//! to its own subnet. This is filtering, not authentication: addresses can be forged.
//!
//! flannel and the kernel take any datagram that comes to the port, for any destination.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::counters::Counter;
use crate::route::peer::PeerId;
use crate::route::table::RouteTable;
use crate::wire::ipv4::Packet;

/// What to do with a packet that does not belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Drop and count it.
    Enforce,
    /// Count it, and let it pass.
    Log,
    /// Let everything pass.
    Off,
}

/// The rules of one node.
#[derive(Debug, Clone)]
pub struct Guard {
    /// Whether they are enforced.
    pub mode: Mode,
    /// The overlay network.
    pub network: Ipv4Net,
    /// Our subnet: what peers may send to.
    pub subnet: Ipv4Net,
    /// Further destinations that peers may send to.
    pub forward_extra: Vec<Ipv4Net>,
    /// Senders that are taken without a lease; what they send from is not checked.
    pub allow_peers: Vec<Ipv4Net>,
    /// Where the rules are enforced, let the kernel drop strangers' datagrams already.
    pub socket_filter: bool,
    /// Refuse inner sources outside of the network too. Peers that do not masquerade send
    /// from such addresses, so it is a choice.
    pub strict: bool,
}

impl Guard {
    /// The usual rules.
    #[must_use]
    pub const fn new(mode: Mode, network: Ipv4Net, subnet: Ipv4Net) -> Self {
        Self {
            mode,
            network,
            subnet,
            forward_extra: Vec::new(),
            allow_peers: Vec::new(),
            socket_filter: true,
            strict: false,
        }
    }

    /// Lets everything pass.
    #[must_use]
    pub fn off() -> Self {
        Self::new(Mode::Off, Ipv4Net::default(), Ipv4Net::default())
    }

    /// Judges the outer source of a datagram, before anything inside is looked at. Returns
    /// the peer that sent it; none where the sender is allowed by configuration, not by a
    /// lease.
    ///
    /// # Errors
    /// [`Counter::InUnknownPeer`].
    #[inline]
    pub fn sender(&self, routes: &RouteTable, outer: Ipv4Addr) -> Result<Option<PeerId>, Counter> {
        let peer = routes.source(outer);
        if peer.is_some() || contains(&self.allow_peers, outer) {
            return Ok(peer);
        }
        Err(Counter::InUnknownPeer)
    }

    /// Judges the addresses inside. `allowed` is a sender without a lease.
    ///
    /// # Errors
    /// The counter of the first check that failed.
    #[inline]
    pub fn packet(
        &self,
        routes: &RouteTable,
        outer: Ipv4Addr,
        allowed: bool,
        packet: &Packet<'_>,
    ) -> Result<(), Counter> {
        let (source, destination) = (packet.source(), packet.destination());
        // The usual case first: from the peer's own subnet to ours.
        let holder = routes.lookup(source);
        let is_holders = holder.is_some_and(|peer| *peer.endpoint().ip() == outer);
        if !is_holders {
            self.stranger(source, allowed)?;
        }
        if self.subnet.contains(&destination) || contains(&self.forward_extra, destination) {
            return Ok(());
        }
        Err(if is_martian(destination) {
            Counter::InMartian
        } else {
            Counter::InForeignDestination
        })
    }

    #[cold]
    fn stranger(&self, source: Ipv4Addr, allowed: bool) -> Result<(), Counter> {
        if is_martian(source) {
            return Err(Counter::InMartian);
        }
        if allowed {
            return Ok(());
        }
        if self.network.contains(&source) || self.strict {
            return Err(Counter::InForeignSource);
        }
        Ok(())
    }
}

fn contains(networks: &[Ipv4Net], address: Ipv4Addr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

/// Addresses that no packet between hosts carries: this network, loopback, link-local, groups,
/// reserved and broadcast (RFC 6890).
const fn is_martian(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    first == 0 || first == 127 || first >= 224 || (first == 169 && second == 254)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::peer::Peer;
    use crate::wire::MacAddr;
    use std::net::SocketAddrV4;

    const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
    const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn routes() -> RouteTable {
        let peer = |address, last| {
            let endpoint = SocketAddrV4::new(address, 8472);
            Peer::new(endpoint, MacAddr([2, 0, 0, 0, 0, last]), PeerId(0))
        };
        RouteTable::empty(net("10.5.0.0/16"), 24).with([
            (net("10.5.2.0/24"), peer(PEER, 2)),
            (net("10.5.3.0/24"), peer(OTHER, 3)),
        ])
    }

    fn guard() -> Guard {
        Guard::new(Mode::Enforce, net("10.5.0.0/16"), net("10.5.1.0/24"))
    }

    fn verdict(guard: &Guard, outer: Ipv4Addr, source: &str, destination: &str) -> Option<Counter> {
        let routes = routes();
        let allowed = match guard.sender(&routes, outer) {
            Ok(peer) => peer.is_none(),
            Err(counter) => return Some(counter),
        };
        let octets = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
        let mut bytes = Vec::new();
        etherparse::PacketBuilder::ipv4(octets(source), octets(destination), 63)
            .udp(1, 2)
            .write(&mut bytes, b"x")
            .unwrap();
        let packet = Packet::new_checked(&bytes).unwrap();
        guard.packet(&routes, outer, allowed, &packet).err()
    }

    #[test]
    fn the_matrix_of_spoofs() {
        use Counter::*;
        let (own, host) = ("10.5.1.7", "10.5.1.0");
        for (outer, source, destination, expected) in [
            (PEER, "10.5.2.2", own, None),
            (PEER, "10.5.2.0", host, None),
            (PEER, "198.51.100.7", own, None),
            (STRANGER, "10.5.2.2", own, Some(InUnknownPeer)),
            (PEER, "10.5.3.2", own, Some(InForeignSource)),
            (PEER, "10.5.1.9", own, Some(InForeignSource)),
            (PEER, "10.5.77.1", own, Some(InForeignSource)),
            (PEER, "10.5.2.2", "10.96.0.1", Some(InForeignDestination)),
            (PEER, "10.5.2.2", "192.0.2.1", Some(InForeignDestination)),
            (PEER, "10.5.2.2", "10.5.3.1", Some(InForeignDestination)),
            (PEER, "127.0.0.1", own, Some(InMartian)),
            (PEER, "169.254.1.1", own, Some(InMartian)),
            (PEER, "0.0.0.0", own, Some(InMartian)),
            (PEER, "224.0.0.5", own, Some(InMartian)),
            (PEER, "255.255.255.255", own, Some(InMartian)),
            (PEER, "10.5.2.2", "127.0.0.1", Some(InMartian)),
            (PEER, "10.5.2.2", "169.254.169.254", Some(InMartian)),
            (PEER, "10.5.2.2", "224.0.0.1", Some(InMartian)),
            (PEER, "10.5.2.2", "255.255.255.255", Some(InMartian)),
        ] {
            let found = verdict(&guard(), outer, source, destination);
            assert_eq!(found, expected, "{outer}: {source} -> {destination}");
        }
    }

    #[test]
    fn what_is_allowed_on_purpose() {
        let guard = Guard {
            strict: true,
            forward_extra: vec![net("10.96.0.0/12")],
            allow_peers: vec![net("192.0.2.8/29")],
            ..guard()
        };
        let own = "10.5.1.7";
        let verdict = |outer, source, destination| verdict(&guard, outer, source, destination);
        assert_eq!(verdict(PEER, "10.5.2.2", "10.96.0.1"), None);
        assert_eq!(verdict(STRANGER, "10.5.3.2", own), None);
        assert_eq!(
            verdict(STRANGER, "127.0.0.1", own),
            Some(Counter::InMartian)
        );
        assert_eq!(
            verdict(PEER, "198.51.100.7", own),
            Some(Counter::InForeignSource)
        );
    }
}
