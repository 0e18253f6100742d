//! Who may send what: the tunnel sees outer and inner header together, so it can hold a peer
//! to its own subnet. This is filtering, not authentication: addresses can be forged.
//!
//! flannel and the kernel take any datagram that comes to the port, for any destination.

pub mod bpf;
pub mod own_addresses;
pub(crate) mod socket_filter;
pub(crate) mod violation_log;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::counters::Counter;
use crate::dataplane::ingress_policy::own_addresses::OwnAddresses;
use crate::route::peer::PeerId;
use crate::route::table::RouteTable;
use crate::wire::ipv4::{self, Packet};

/// What to do with a packet that does not belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    /// Drop and count it.
    Enforce,
    /// Count it, and let it pass.
    Log,
    /// Let everything pass.
    Off,
}

/// The rules of one node.
#[derive(Debug, Clone)]
pub struct IngressPolicy {
    /// Whether they are enforced.
    pub mode: Enforcement,
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
    /// The only interface, by its index, over which datagrams may come.
    pub interface: Option<u32>,
    /// This host's addresses: nothing that comes out of a tunnel comes from them.
    pub own: OwnAddresses,
}

impl IngressPolicy {
    /// The usual rules.
    #[must_use]
    pub fn new(mode: Enforcement, network: Ipv4Net, subnet: Ipv4Net) -> Self {
        Self {
            mode,
            network,
            subnet,
            forward_extra: Vec::new(),
            allow_peers: Vec::new(),
            socket_filter: true,
            strict: false,
            interface: None,
            own: OwnAddresses::default(),
        }
    }

    /// Lets everything pass.
    #[must_use]
    pub fn off() -> Self {
        Self::new(Enforcement::Off, Ipv4Net::default(), Ipv4Net::default())
    }

    /// Brings what may change up to date. To be called once a drain.
    #[inline]
    pub fn refresh(&mut self) {
        self.own.refresh();
    }

    /// Judges the interface that a datagram came over, whatever the mode: which one is to be
    /// received on was said apart from it.
    ///
    /// # Errors
    /// [`Counter::InOtherInterface`].
    #[inline]
    pub fn check_interface(&self, interface: Option<u32>) -> Result<(), Counter> {
        if self.interface.is_some() && interface != self.interface {
            return Err(Counter::InOtherInterface);
        }
        Ok(())
    }

    /// Judges the outer source of a datagram, before anything inside is looked at. Returns
    /// the peer that sent it; none where the sender is allowed by configuration, not by a
    /// lease.
    ///
    /// # Errors
    /// [`Counter::InUnknownPeer`].
    #[inline]
    pub fn check_sender(
        &self,
        routes: &RouteTable,
        outer: Ipv4Addr,
    ) -> Result<Option<PeerId>, Counter> {
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
    pub fn check_packet(
        &self,
        routes: &RouteTable,
        outer: Ipv4Addr,
        allowed: bool,
        packet: &Packet<'_>,
    ) -> Result<(), Counter> {
        let (source, destination) = (packet.source(), packet.destination());
        // The usual case first: from the peer's own subnet to ours, without options.
        let holder = routes.lookup(source);
        let is_holders = holder.is_some_and(|peer| *peer.endpoint().ip() == outer);
        if !is_holders {
            self.stranger(routes, outer, source, allowed)?;
        }
        if packet.header_len() > ipv4::MIN_HEADER_LEN {
            options(packet)?;
        }
        if self.subnet.contains(&destination) {
            return match is_directed_broadcast(self.subnet, destination) {
                true => Err(Counter::InMartian),
                false => Ok(()),
            };
        }
        if contains(&self.forward_extra, destination) {
            return Ok(());
        }
        Err(if is_martian(destination) {
            Counter::InMartian
        } else {
            Counter::InForeignDestination
        })
    }

    /// Judges a source that is not of the sender's subnet.
    #[cold]
    fn stranger(
        &self,
        routes: &RouteTable,
        outer: Ipv4Addr,
        source: Ipv4Addr,
        allowed: bool,
    ) -> Result<(), Counter> {
        if is_martian(source) {
            return Err(Counter::InMartian);
        }
        // What is on this host comes out of no tunnel, whoever sends it.
        if self.subnet.contains(&source) || self.own.contains(source) {
            return Err(Counter::InForeignSource);
        }
        if allowed {
            return Ok(());
        }
        // Another node's own address is that node's, as much as its subnet.
        let is_other_nodes = source != outer && routes.source(source).is_some();
        if is_other_nodes || self.network.contains(&source) || self.strict {
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

/// To all hosts of a subnet. Networks of one or two addresses have no such address (RFC 3021).
fn is_directed_broadcast(subnet: Ipv4Net, destination: Ipv4Addr) -> bool {
    subnet.prefix_len() < 31 && destination.to_bits() == subnet.broadcast().to_bits()
}

/// Options that would lead a packet on past our rules (RFC 791: loose and strict source and
/// record route), and lists of options which are none: the kernel would answer those.
#[cold]
fn options(packet: &Packet<'_>) -> Result<(), Counter> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    let mut rest = &packet.bytes()[ipv4::MIN_HEADER_LEN..packet.header_len()];
    while let [kind, behind @ ..] = rest {
        rest = match *kind {
            END => return Ok(()),
            NO_OPERATION => behind,
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(Counter::InSourceRoute),
            _ => {
                let length = behind.first().copied().map_or(0, usize::from);
                // The length counts kind and length too.
                match rest.get(length..) {
                    Some(next) if length >= 2 => next,
                    _ => return Err(Counter::InMalformed),
                }
            }
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::peer::RemoteVtep;
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
            RemoteVtep::new(endpoint, MacAddr([2, 0, 0, 0, 0, last]), PeerId(0))
        };
        RouteTable::empty(net("10.5.0.0/16"), 24).with([
            (net("10.5.2.0/24"), peer(PEER, 2)),
            (net("10.5.3.0/24"), peer(OTHER, 3)),
        ])
    }

    fn policy() -> IngressPolicy {
        IngressPolicy::new(Enforcement::Enforce, net("10.5.0.0/16"), net("10.5.1.0/24"))
    }

    fn verdict(
        policy: &IngressPolicy,
        outer: Ipv4Addr,
        source: &str,
        destination: &str,
    ) -> Option<Counter> {
        verdict_with(policy, outer, source, destination, &[])
    }

    fn verdict_with(
        policy: &IngressPolicy,
        outer: Ipv4Addr,
        source: &str,
        destination: &str,
        options: &[u8],
    ) -> Option<Counter> {
        let routes = routes();
        let allowed = match policy.check_sender(&routes, outer) {
            Ok(peer) => peer.is_none(),
            Err(counter) => return Some(counter),
        };
        let octets = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
        let mut bytes = Vec::new();
        let mut ip = etherparse::Ipv4Header::new(
            9,
            63,
            etherparse::IpNumber::UDP,
            octets(source),
            octets(destination),
        )
        .unwrap();
        ip.options = options.try_into().unwrap();
        let header = etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default());
        etherparse::PacketBuilder::ip(header)
            .udp(1, 2)
            .write(&mut bytes, b"x")
            .unwrap();
        let packet = Packet::new_checked(&bytes).unwrap();
        policy.check_packet(&routes, outer, allowed, &packet).err()
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
            let found = verdict(&policy(), outer, source, destination);
            assert_eq!(found, expected, "{outer}: {source} -> {destination}");
        }
    }

    #[test]
    fn nobody_speaks_for_this_host_or_for_another_node() {
        use Counter::InForeignSource;
        let policy = IngressPolicy {
            allow_peers: vec![net("192.0.2.8/29")],
            ..policy()
        };
        policy.own.set([Ipv4Addr::new(203, 0, 113, 5)]);
        let mut policy = policy;
        policy.refresh();
        let own = "10.5.1.7";
        for (outer, source, expected) in [
            (PEER, "203.0.113.5", Some(InForeignSource)),
            (STRANGER, "203.0.113.5", Some(InForeignSource)),
            (PEER, "203.0.113.6", None),
            // Another node's public address, and its own.
            (PEER, "192.0.2.3", Some(InForeignSource)),
            (PEER, "192.0.2.2", None),
            (STRANGER, "192.0.2.3", None),
            // Our subnet, from whom nothing else is asked.
            (STRANGER, "10.5.1.9", Some(InForeignSource)),
            (STRANGER, "10.5.3.9", None),
        ] {
            let found = verdict(&policy, outer, source, own);
            assert_eq!(found, expected, "{outer}: {source}");
        }
    }

    #[test]
    fn a_subnets_broadcast_is_no_host() {
        let all = "10.5.1.255";
        let martian = Some(Counter::InMartian);
        assert_eq!(verdict(&policy(), PEER, "10.5.2.2", all), martian);
        // Where there is no such address, the last one is a host's.
        let narrow = IngressPolicy {
            subnet: net("10.5.1.254/31"),
            ..policy()
        };
        assert_eq!(verdict(&narrow, PEER, "10.5.2.2", all), None);
    }

    #[test]
    fn source_routes_are_refused_and_other_options_pass() {
        use Counter::{InMalformed, InSourceRoute};
        for (options, expected) in [
            (&[131u8, 7, 4, 10, 96, 0, 1, 0][..], Some(InSourceRoute)),
            (&[137, 7, 4, 10, 96, 0, 1, 0], Some(InSourceRoute)),
            // Behind others.
            (&[1, 1, 131, 6, 4, 10, 96, 0], Some(InSourceRoute)),
            (&[68, 4, 5, 0, 131, 3, 4, 0], Some(InSourceRoute)),
            // Record route, timestamp, router alert, security: none of our business.
            (&[7, 7, 4, 0, 0, 0, 0, 0], None),
            (&[68, 8, 5, 0, 0, 0, 0, 0], None),
            (&[148, 4, 0, 0], None),
            (&[1, 1, 1, 0], None),
            // Behind the end there are no options any more.
            (&[0, 131, 3, 4], None),
            (&[7, 0, 0, 0], Some(InMalformed)),
            (&[7, 1, 0, 0], Some(InMalformed)),
            (&[7, 9, 0, 0], Some(InMalformed)),
            (&[1, 1, 1, 7], Some(InMalformed)),
        ] {
            let found = verdict_with(&policy(), PEER, "10.5.2.2", "10.5.1.7", options);
            assert_eq!(found, expected, "{options:?}");
        }
    }

    #[test]
    fn only_the_chosen_interface_counts_where_one_was_chosen() {
        let chosen = IngressPolicy {
            interface: Some(2),
            ..policy()
        };
        let other = Err(Counter::InOtherInterface);
        assert_eq!(chosen.check_interface(Some(2)), Ok(()));
        assert_eq!(chosen.check_interface(Some(3)), other);
        assert_eq!(chosen.check_interface(None), other);
        assert_eq!(policy().check_interface(Some(3)), Ok(()));
        assert_eq!(policy().check_interface(None), Ok(()));
    }

    #[test]
    fn what_is_allowed_on_purpose() {
        let policy = IngressPolicy {
            strict: true,
            forward_extra: vec![net("10.96.0.0/12")],
            allow_peers: vec![net("192.0.2.8/29")],
            ..policy()
        };
        let own = "10.5.1.7";
        let verdict = |outer, source, destination| verdict(&policy, outer, source, destination);
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
