//! Which rules are wanted, after flannel's `pkg/trafficmngr` (v0.28) and, for what older
//! versions may have left, `network/iptables.go` (v0.11).

use ipnet::Ipv4Net;

/// The prefixes that the rules match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefixes {
    /// The overlay network.
    pub(crate) network: Ipv4Net,
    /// This host's subnet.
    pub(crate) subnet: Ipv4Net,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Translate what leaves the overlay to the host's address (`--ip-masq`).
    pub(crate) masquerade: bool,
    /// Accept what is forwarded from and to the overlay (`--iptables-forward-rules`).
    pub(crate) forward: bool,
    /// Randomize the translated ports, if the tool supports it (`--random-fully`).
    pub(crate) random_ports: bool,
}

impl Wanted {
    pub(crate) const NOTHING: Self = Self {
        masquerade: false,
        forward: false,
        random_ports: false,
    };

    pub(crate) const fn is_nothing(self) -> bool {
        !self.masquerade && !self.forward
    }
}

/// Destinations that are never translated.
pub(super) const MULTICAST: &str = "224.0.0.0/4";
/// The mark of packets that kube-proxy masquerades itself.
pub(super) const KUBE_PROXY_MARK: u32 = 0x4000;
