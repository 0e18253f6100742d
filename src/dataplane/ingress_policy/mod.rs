//! The peer check: which senders are accepted, and with which inner addresses.
//!
//! flannel and the kernel's vxlan accept any datagram that reaches the port, for any
//! destination. Here outer and inner header are checked together, which holds each peer to its
//! own subnet. This is filtering, not authentication: addresses can be forged.

mod bpf;
pub mod own_addresses;
pub(super) mod socket_filter;
pub(super) mod violation_log;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::counters::Counter;
use own_addresses::OwnAddresses;

use crate::route::peer::PeerId;
use crate::route::table::RouteTable;
use crate::wire::ipv4::{self, Packet};

/// What to do with a packet that violates the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    /// Drop and count it.
    Enforce,
    /// Count it, and let it pass.
    Log,
    /// Do not check.
    Off,
}

/// The rules of one node.
#[derive(Debug, Clone)]
pub struct IngressPolicy {
    /// Whether violations are dropped.
    pub mode: Enforcement,
    /// The overlay network.
    pub network: Ipv4Net,
    /// This node's subnet: the destinations that peers may send to.
    pub subnet: Ipv4Net,
    /// Further destinations that peers may send to.
    pub forward_extra: Vec<Ipv4Net>,
    /// Senders that are accepted without a lease. Their inner source addresses are not checked.
    pub allow_peers: Vec<Ipv4Net>,
    /// Where the rules are enforced, have the kernel drop datagrams of unknown senders.
    pub socket_filter: bool,
    /// Also refuse inner sources outside of the overlay network. Peers that do not masquerade
    /// send from such addresses, so this is off by default.
    pub strict: bool,
    /// Index of the only interface that datagrams are accepted from.
    pub interface: Option<u32>,
    /// This host's addresses: no packet from a tunnel may have them as source.
    pub own: OwnAddresses,
}

impl IngressPolicy {
    /// The default rules.
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

    /// Accepts everything.
    #[must_use]
    pub fn off() -> Self {
        Self::new(Enforcement::Off, Ipv4Net::default(), Ipv4Net::default())
    }

    /// Takes over changes of [`Self::own`]. Call it once per drain.
    #[inline]
    pub fn refresh(&mut self) {
        self.own.refresh();
    }

    /// Checks the interface that a datagram arrived on. It applies in every mode, because it
    /// has a flag of its own.
    ///
    /// # Errors
    /// [`Counter::InOtherInterface`].
    #[inline]
    pub(super) fn check_interface(&self, interface: Option<u32>) -> Result<(), Counter> {
        if self.interface.is_some() && interface != self.interface {
            return Err(Counter::InOtherInterface);
        }
        Ok(())
    }

    /// Checks the outer source of a datagram, before anything inside is parsed. Returns the
    /// peer that sent it, or `None` if the sender is allowed by configuration and has no lease.
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

    /// Checks the inner addresses. `without_lease` says that the sender is allowed by
    /// configuration.
    ///
    /// # Errors
    /// The counter of the first check that failed.
    #[inline]
    pub fn check_packet(
        &self,
        routes: &RouteTable,
        outer: Ipv4Addr,
        without_lease: bool,
        packet: &Packet<'_>,
    ) -> Result<(), Counter> {
        let (source, destination) = (packet.source(), packet.destination());
        // The common case first: from the peer's own subnet to ours, without options.
        let holder = routes.lookup(source);
        let is_holders = holder.is_some_and(|peer| *peer.endpoint().ip() == outer);
        if !is_holders {
            self.check_other_source(routes, outer, source, without_lease)?;
        }
        if packet.header_len() > ipv4::MIN_HEADER_LEN {
            check_options(packet)?;
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

    /// Checks a source outside of the sender's subnet.
    #[cold]
    fn check_other_source(
        &self,
        routes: &RouteTable,
        outer: Ipv4Addr,
        source: Ipv4Addr,
        without_lease: bool,
    ) -> Result<(), Counter> {
        if is_martian(source) {
            return Err(Counter::InMartian);
        }
        // Nothing on this host sends through a tunnel to it.
        if self.subnet.contains(&source) || self.own.contains(source) {
            return Err(Counter::InForeignSource);
        }
        if without_lease {
            return Ok(());
        }
        // A node's own address belongs to that node as much as its subnet.
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

/// Addresses that no packet between hosts carries: this network, loopback, link-local,
/// multicast, reserved and broadcast (RFC 6890).
const fn is_martian(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    first == 0 || first == 127 || first >= 224 || (first == 169 && second == 254)
}

/// Networks of one or two addresses have no broadcast address (RFC 3021).
fn is_directed_broadcast(subnet: Ipv4Net, destination: Ipv4Addr) -> bool {
    subnet.prefix_len() < 31 && destination.to_bits() == subnet.broadcast().to_bits()
}

/// Refuses source routes (RFC 791: loose and strict source and record route), which would lead
/// a packet on to destinations that the rules forbid, and malformed options, which the kernel
/// would answer with ICMP.
#[cold]
fn check_options(packet: &Packet<'_>) -> Result<(), Counter> {
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
                // The length covers the bytes of kind and length too.
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
    const UNKNOWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

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

    fn checked(
        policy: &IngressPolicy,
        outer: Ipv4Addr,
        source: &str,
        destination: &str,
    ) -> Option<Counter> {
        checked_with(policy, outer, source, destination, &[])
    }

    fn checked_with(
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
    fn spoofed_addresses_are_refused() {
        use Counter::*;
        let (own, host) = ("10.5.1.7", "10.5.1.0");
        for (outer, source, destination, expected) in [
            (PEER, "10.5.2.2", own, None),
            (PEER, "10.5.2.0", host, None),
            (PEER, "198.51.100.7", own, None),
            (UNKNOWN, "10.5.2.2", own, Some(InUnknownPeer)),
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
            let found = checked(&policy(), outer, source, destination);
            assert_eq!(found, expected, "{outer}: {source} -> {destination}");
        }
    }

    #[test]
    fn nobody_sends_as_this_host_or_as_another_node() {
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
            (UNKNOWN, "203.0.113.5", Some(InForeignSource)),
            (PEER, "203.0.113.6", None),
            // Another node's public address, and its own.
            (PEER, "192.0.2.3", Some(InForeignSource)),
            (PEER, "192.0.2.2", None),
            (UNKNOWN, "192.0.2.3", None),
            // An allowed sender may not use our subnet, but any other.
            (UNKNOWN, "10.5.1.9", Some(InForeignSource)),
            (UNKNOWN, "10.5.3.9", None),
        ] {
            let found = checked(&policy, outer, source, own);
            assert_eq!(found, expected, "{outer}: {source}");
        }
    }

    #[test]
    fn a_subnets_broadcast_address_is_refused() {
        let all = "10.5.1.255";
        let martian = Some(Counter::InMartian);
        assert_eq!(checked(&policy(), PEER, "10.5.2.2", all), martian);
        // Where there is no such address, the last one is a host's.
        let pair = IngressPolicy {
            subnet: net("10.5.1.254/31"),
            ..policy()
        };
        assert_eq!(checked(&pair, PEER, "10.5.2.2", all), None);
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
            // Record route, timestamp, router alert, security: not refused.
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
            let found = checked_with(&policy(), PEER, "10.5.2.2", "10.5.1.7", options);
            assert_eq!(found, expected, "{options:?}");
        }
    }

    #[test]
    fn only_the_configured_interface_is_accepted() {
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
    fn exceptions_by_configuration() {
        let policy = IngressPolicy {
            strict: true,
            forward_extra: vec![net("10.96.0.0/12")],
            allow_peers: vec![net("192.0.2.8/29")],
            ..policy()
        };
        let own = "10.5.1.7";
        let checked = |outer, source, destination| checked(&policy, outer, source, destination);
        assert_eq!(checked(PEER, "10.5.2.2", "10.96.0.1"), None);
        assert_eq!(checked(UNKNOWN, "10.5.3.2", own), None);
        assert_eq!(checked(UNKNOWN, "127.0.0.1", own), Some(Counter::InMartian));
        assert_eq!(
            checked(PEER, "198.51.100.7", own),
            Some(Counter::InForeignSource)
        );
    }
}
