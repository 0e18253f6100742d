//! How the kernel sends to each peer: which routes are wanted, and that it has them.
//!
//! A change among the peers changes just their routes; everything is compared only now and
//! then, and when something on the host has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::Bound;

use futures_util::{StreamExt, stream};
use ipnet::Ipv4Net;

use crate::host::netlink::{Netlink, NetlinkError};
use crate::host::routes::{self, Outcome, Realm, Way, WayChange};

/// So many changes at once are followed one by one; more are cheaper by comparing everything.
const FEW: usize = 256;
/// Peers whose way is asked for again in one comparison, where some may be on our link.
const ASKED_AGAIN: usize = 512;
/// Questions that are on their way to the kernel at a time.
const AT_ONCE: usize = 64;

/// The wanted ways, by subnet.
#[derive(Debug, Default)]
pub struct Ways {
    /// Whether peers on the same link are reached without the tunnel.
    direct: bool,
    desired: BTreeMap<Ipv4Net, Way>,
    /// Those of them for which there is no route now.
    unrouted: BTreeSet<Ipv4Net>,
    /// Prefixes for which there were routes of others when the kernel's were read last.
    foreign: BTreeSet<Ipv4Net>,
    /// Whether the kernel's routes were compared since the start.
    compared: bool,
    /// Behind which subnet the next questions begin.
    cursor: Option<Ipv4Net>,
}

impl Ways {
    /// No peers yet.
    #[must_use]
    pub fn new(direct_routing: bool) -> Self {
        Self {
            direct: direct_routing,
            ..Self::default()
        }
    }

    /// How the kernel is to send to a peer's subnet.
    #[must_use]
    pub fn get(&self, subnet: Ipv4Net) -> Option<Way> {
        self.desired.get(&subnet).copied()
    }

    /// Decides anew about these peers, by subnet and public address, where there is one.
    /// Returns what changes; the kernel is asked, and not told.
    pub async fn decide(
        &mut self,
        netlink: &Netlink,
        device: u32,
        peers: impl IntoIterator<Item = (Ipv4Net, Option<Ipv4Addr>)>,
    ) -> Vec<WayChange> {
        let direct = self.direct;
        let decided: Vec<_> = stream::iter(peers)
            .map(async |(subnet, public_ip)| match public_ip {
                Some(public_ip) if direct => {
                    let old = self.get(subnet);
                    (subnet, Some(ask(netlink, device, public_ip, old).await))
                }
                Some(_) => (subnet, Some(Way::Tunnel)),
                None => (subnet, None),
            })
            .buffered(AT_ONCE)
            .collect()
            .await;
        let mut changes = Vec::new();
        for (subnet, after) in decided {
            let before = match after {
                Some(way) => self.desired.insert(subnet, way),
                None => self.desired.remove(&subnet),
            };
            if before == after {
                continue;
            }
            if after.is_none() {
                self.unrouted.remove(&subnet);
            }
            if direct && let Some(way) = after {
                let direct = way != Way::Tunnel;
                tracing::info!(event = "direct_routing", %subnet, direct, "how a peer is reached");
            }
            changes.push(WayChange {
                subnet,
                before,
                after,
            });
        }
        changes
    }

    /// Whether [`Ways::reconcile`] is the way to follow these changes: because nobody knows
    /// yet what the kernel has, or because it is cheaper.
    #[must_use]
    pub const fn should_compare(&self, changes: &[WayChange]) -> bool {
        !self.compared || changes.len() > FEW
    }

    /// Has the kernel follow some changes; `false` where only [`Ways::reconcile`] can tell
    /// what is the matter.
    pub async fn follow(&self, netlink: &Netlink, realm: Realm, changes: &[WayChange]) -> bool {
        let (doubtful, clear): (Vec<_>, Vec<_>) = changes
            .iter()
            .copied()
            .partition(|change| self.foreign.contains(&change.subnet));
        let outcome = routes::follow(netlink, &clear, realm).await;
        doubtful.is_empty() && outcome.failed.is_empty()
    }

    /// Compares all routes of the kernel with what is wanted, and mends them. `address` knows
    /// the peers' public addresses.
    ///
    /// # Errors
    /// When the kernel's routes cannot be read. A route that is refused is logged.
    pub async fn reconcile(
        &mut self,
        netlink: &Netlink,
        realm: Realm,
        address: impl Fn(Ipv4Net) -> Option<Ipv4Addr>,
    ) -> Result<Outcome, NetlinkError> {
        let again = self.next();
        let peers = again.into_iter().map(|subnet| (subnet, address(subnet)));
        self.decide(netlink, realm.device, peers).await;
        let outcome = routes::reconcile(netlink, &self.desired, realm).await?;
        self.compared = true;
        self.foreign.clone_from(&outcome.foreign);
        for (subnet, error) in &outcome.failed {
            if !self.unrouted.contains(subnet) {
                tracing::error!(event = "route_failed", %subnet, %error, "no route to a peer's subnet");
            }
        }
        self.unrouted = outcome.failed.iter().map(|(subnet, _)| *subnet).collect();
        Ok(outcome)
    }

    /// The next subnets whose way may have changed by itself, in turn.
    fn next(&mut self) -> Vec<Ipv4Net> {
        if !self.direct {
            return Vec::new();
        }
        let from = self.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.desired.range((from, Bound::Unbounded));
        let next: Vec<_> = rest.map(|(subnet, _)| *subnet).take(ASKED_AGAIN).collect();
        self.cursor = match next.last() {
            Some(last) if next.len() == ASKED_AGAIN => Some(*last),
            _ => None,
        };
        next
    }
}

/// Whether a peer is reached through the tunnel. flannel asks the kernel too
/// (`pkg/ip/iface.go: DirectRouting`): a route without gateway leads to a host on the same
/// link. Where the kernel does not answer, all stays as it was.
async fn ask(netlink: &Netlink, device: u32, public_ip: Ipv4Addr, old: Option<Way>) -> Way {
    match netlink.route_get(public_ip).await {
        Ok(Some(found)) if found.gateway.is_none() && found.ifindex != device => Way::Direct {
            gateway: public_ip,
            ifindex: found.ifindex,
        },
        Ok(_) => Way::Tunnel,
        Err(error) => {
            tracing::debug!(event = "route_lookup_failed", %public_ip, %error);
            old.unwrap_or(Way::Tunnel)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_is_asked_for_in_turn() {
        let mut ways = Ways::new(true);
        let subnets: Vec<_> = (0..1300u32)
            .map(|n| Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0a00_0000 + (n << 8)), 24))
            .collect();
        ways.desired = subnets.iter().map(|net| (*net, Way::Tunnel)).collect();
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.extend(ways.next());
        }
        assert_eq!(seen, subnets);
        assert_eq!(ways.next()[0], subnets[0]);
        assert!(Ways::new(false).next().is_empty());
    }
}
