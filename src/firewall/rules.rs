//! Which rules, by flannel's `pkg/trafficmngr` (v0.28) and, for what may be left of it,
//! `network/iptables.go` (v0.11).

use ipnet::Ipv4Net;

/// What the rules are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// The overlay network.
    pub network: Ipv4Net,
    /// Our subnet.
    pub subnet: Ipv4Net,
}

/// Which rules are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Translate what leaves the overlay to the host's address (`--ip-masq`).
    pub masquerade: bool,
    /// Accept what is forwarded from and to the overlay (`--iptables-forward-rules`).
    pub forward: bool,
    /// Choose the translated ports at random, where the tool can (`--random-fully`).
    pub random_ports: bool,
}

impl Wanted {
    /// Whether there is nothing to do.
    #[must_use]
    pub const fn is_nothing(self) -> bool {
        !self.masquerade && !self.forward
    }
}

/// The groups a packet may not be translated for.
pub const MULTICAST: &str = "224.0.0.0/4";
/// The mark that kube-proxy sets on packets which it will masquerade itself.
pub const KUBE_PROXY_MARK: u32 = 0x4000;
