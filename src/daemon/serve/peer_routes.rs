//! How the kernel routes packets to each peer: which routes are wanted, and that they are
//! installed.
//!
//! A change of a peer updates its route alone. All routes are compared periodically, and when
//! something on the host has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::Bound;

use ipnet::Ipv4Net;

use crate::host::netlink::{Netlink, NetlinkError, concurrently};
use crate::host::routes::{self, NextHop, NextHopChange, OverlayNetwork, RouteReport};

/// Up to so many changes are applied one by one; for more, comparing everything is cheaper.
const MAX_SINGLE_UPDATES: usize = 256;
/// Peers whose next hop is looked up again in one comparison, if some may be on our link.
const LOOKUPS_PER_ROUND: usize = 512;

/// The wanted next hops, by subnet.
#[derive(Debug, Default)]
pub(crate) struct PeerRoutes {
    /// Whether peers on the same link are reached without the tunnel.
    direct: bool,
    desired: BTreeMap<Ipv4Net, NextHop>,
    /// Desired subnets for which no route could be installed.
    unrouted: BTreeSet<Ipv4Net>,
    /// Prefixes that had foreign routes when the kernel's routes were last read.
    foreign: BTreeSet<Ipv4Net>,
    /// Whether the kernel's routes were compared since the start.
    compared: bool,
    /// The subnet after which the next round of lookups begins.
    cursor: Option<Ipv4Net>,
}

impl PeerRoutes {
    /// No peers yet.
    #[must_use]
    pub(crate) fn new(direct_routing: bool) -> Self {
        Self {
            direct: direct_routing,
            ..Self::default()
        }
    }

    /// The wanted next hop to a peer's subnet.
    #[must_use]
    pub(crate) fn get(&self, subnet: Ipv4Net) -> Option<NextHop> {
        self.desired.get(&subnet).copied()
    }

    /// Determines the next hops of these peers again, given by subnet and public address; a
    /// peer without an address gets no route. Returns the changes, which are not applied yet.
    pub(crate) async fn decide(
        &mut self,
        netlink: &Netlink,
        device: u32,
        peers: impl IntoIterator<Item = (Ipv4Net, Option<Ipv4Addr>)>,
    ) -> Vec<NextHopChange> {
        let direct = self.direct;
        let lookups = peers
            .into_iter()
            .map(async |(subnet, public_ip)| match public_ip {
                Some(public_ip) if direct => {
                    let old = self.get(subnet);
                    let found = look_up(netlink, device, public_ip, old).await;
                    (subnet, Some(found))
                }
                Some(_) => (subnet, Some(NextHop::Tunnel)),
                None => (subnet, None),
            });
        let mut changes = Vec::new();
        for (subnet, after) in concurrently(lookups).await {
            let before = match after {
                Some(next_hop) => self.desired.insert(subnet, next_hop),
                None => self.desired.remove(&subnet),
            };
            if before == after {
                continue;
            }
            if after.is_none() {
                self.unrouted.remove(&subnet);
            }
            if direct && let Some(next_hop) = after {
                let direct = next_hop != NextHop::Tunnel;
                tracing::info!(event = "direct_routing", %subnet, direct, "how a peer is reached");
            }
            changes.push(NextHopChange {
                subnet,
                before,
                after,
            });
        }
        changes
    }

    /// Whether these changes take a [`PeerRoutes::reconcile`]: because the kernel's routes are
    /// not known yet, or because it is cheaper.
    #[must_use]
    pub(crate) const fn needs_reconcile(&self, changes: &[NextHopChange]) -> bool {
        !self.compared || changes.len() > MAX_SINGLE_UPDATES
    }

    /// Applies some changes to the kernel's routes; `false` if a [`PeerRoutes::reconcile`] is
    /// needed after all.
    pub(crate) async fn update(
        &self,
        netlink: &Netlink,
        overlay: OverlayNetwork,
        changes: &[NextHopChange],
    ) -> bool {
        let (contested, clear): (Vec<_>, Vec<_>) = changes
            .iter()
            .copied()
            .partition(|change| self.foreign.contains(&change.subnet));
        let report = routes::update(netlink, &clear, overlay).await;
        contested.is_empty() && report.failed.is_empty()
    }

    /// Compares all routes of the kernel with the wanted ones, and repairs them. `address`
    /// returns a peer's public address.
    ///
    /// # Errors
    /// If the kernel's routes cannot be read. A route that is refused is logged.
    pub(crate) async fn reconcile(
        &mut self,
        netlink: &Netlink,
        overlay: OverlayNetwork,
        address: impl Fn(Ipv4Net) -> Option<Ipv4Addr>,
    ) -> Result<RouteReport, NetlinkError> {
        let again = self.next_round();
        let peers = again.into_iter().map(|subnet| (subnet, address(subnet)));
        self.decide(netlink, overlay.device, peers).await;
        let report = routes::reconcile(netlink, &self.desired, overlay).await?;
        self.compared = true;
        self.foreign.clone_from(&report.foreign);
        for (subnet, error) in &report.failed {
            if !self.unrouted.contains(subnet) {
                tracing::error!(event = "route_failed", %subnet, %error, "no route to a peer's subnet");
            }
        }
        self.unrouted = report.failed.iter().map(|(subnet, _)| *subnet).collect();
        Ok(report)
    }

    /// The next subnets, in turn, whose next hop may have changed without a change of the peer.
    fn next_round(&mut self) -> Vec<Ipv4Net> {
        if !self.direct {
            return Vec::new();
        }
        let from = self.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.desired.range((from, Bound::Unbounded));
        let next: Vec<_> = rest
            .map(|(subnet, _)| *subnet)
            .take(LOOKUPS_PER_ROUND)
            .collect();
        self.cursor = match next.last() {
            Some(last) if next.len() == LOOKUPS_PER_ROUND => Some(*last),
            _ => None,
        };
        next
    }
}

/// The next hop to a peer. As in flannel (`pkg/ip/iface.go: DirectRouting`), a route without a
/// gateway means a host on the same link. If the kernel does not answer, the next hop stays.
async fn look_up(
    netlink: &Netlink,
    device: u32,
    public_ip: Ipv4Addr,
    old: Option<NextHop>,
) -> NextHop {
    match netlink.route_get(public_ip).await {
        Ok(Some(found)) if found.gateway.is_none() && found.ifindex != device => NextHop::Direct {
            gateway: public_ip,
            ifindex: found.ifindex,
        },
        Ok(_) => NextHop::Tunnel,
        Err(error) => {
            tracing::debug!(event = "route_lookup_failed", %public_ip, %error);
            old.unwrap_or(NextHop::Tunnel)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_is_looked_up_in_turn() {
        let mut routes = PeerRoutes::new(true);
        let subnets: Vec<_> = (0..1300u32)
            .map(|n| Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0a00_0000 + (n << 8)), 24))
            .collect();
        routes.desired = subnets.iter().map(|net| (*net, NextHop::Tunnel)).collect();
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.extend(routes.next_round());
        }
        assert_eq!(seen, subnets);
        assert_eq!(routes.next_round()[0], subnets[0]);
        assert!(PeerRoutes::new(false).next_round().is_empty());
    }
}
