//! Which routes the kernel should have, and how those it has differ from them. Pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::host::netlink::{ROUTE_PROTOCOL, Route};

/// Where the kernel sends packets for a peer's subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// Into the overlay device.
    Tunnel,
    /// Unencapsulated to the peer, which is on the same link.
    Direct {
        /// The peer's public address.
        gateway: Ipv4Addr,
        /// Index of the link.
        ifindex: u32,
    },
}

/// The overlay network, which decides which routes are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverlayNetwork {
    /// Prefix of all leases.
    pub network: Ipv4Net,
    /// Index of the overlay device.
    pub device: u32,
    /// Our own subnet, if packets for it that match no other route are to be discarded
    /// (`--ip-blackhole-route`): otherwise one for a stopped container would leave by the
    /// default route.
    pub blackhole: Option<Ipv4Net>,
}

/// Less preferred than any other route of the prefix: that of a bridge must win. flannel's
/// blackhole has metric 0, so the route that was added first wins there.
const BLACKHOLE_METRIC: u32 = u32::MAX;

/// What has to change in the kernel's routing table.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RouteChanges {
    /// Routes of ours that are not desired or duplicates.
    pub(super) remove: Vec<Route>,
    /// Routes of ours with a wrong next hop: old and new.
    pub(super) replace: Vec<(Route, Route)>,
    pub(super) add: Vec<Route>,
    /// Desired subnets for which there is a foreign route with the same prefix.
    pub(super) conflicts: Vec<(Ipv4Net, Route)>,
}

/// The route to a peer's `subnet` over the overlay device with index `device`.
#[must_use]
pub fn overlay_route(subnet: Ipv4Net, device: u32) -> Route {
    Route {
        onlink: true,
        ..Route::ours(subnet, Some(subnet.network()), device)
    }
}

impl OverlayNetwork {
    pub(super) fn route(self, subnet: Ipv4Net, next_hop: NextHop) -> Route {
        match next_hop {
            NextHop::Tunnel => overlay_route(subnet, self.device),
            NextHop::Direct { gateway, ifindex } => Route::ours(subnet, Some(gateway), ifindex),
        }
    }

    pub(super) fn owns(self, route: &Route) -> bool {
        let to_a_peer = route.gateway.is_some_and(|gateway| {
            // The gateway of another instance's device route is the subnet's own address.
            gateway != route.destination.network()
        });
        route.protocol == ROUTE_PROTOCOL
            && (route.ifindex == Some(self.device)
                || (to_a_peer && self.network.contains(&route.destination)))
    }

    /// Compares the `installed` routes with the `desired` next hops.
    pub(super) fn diff(
        self,
        desired: &BTreeMap<Ipv4Net, NextHop>,
        installed: &[Route],
    ) -> RouteChanges {
        let mut changes = RouteChanges::default();
        let mut ours: BTreeMap<Ipv4Net, &Route> = BTreeMap::new();
        let mut foreign: BTreeMap<Ipv4Net, &Route> = BTreeMap::new();
        let mut blackhole = self.blackhole;
        for route in installed {
            let subnet = route.destination;
            if route.protocol == ROUTE_PROTOCOL && !route.unicast {
                if blackhole == Some(subnet) {
                    blackhole = None;
                } else if self.network.contains(&subnet) {
                    changes.remove.push(route.clone());
                }
            } else if !self.owns(route) {
                let known = foreign.entry(subnet).or_insert(route);
                // Of several, the one that excludes ours.
                if excludes_ours(route, subnet) {
                    *known = route;
                }
            } else if !desired.contains_key(&subnet) || ours.contains_key(&subnet) {
                changes.remove.push(route.clone());
            } else {
                ours.insert(subnet, route);
            }
        }
        changes.add.extend(blackhole.map(|subnet| Route {
            ifindex: None,
            unicast: false,
            metric: BLACKHOLE_METRIC,
            ..Route::ours(subnet, None, 0)
        }));
        for (&subnet, &next_hop) in desired {
            let wanted = self.route(subnet, next_hop);
            match (ours.get(&subnet), foreign.get(&subnet)) {
                (Some(present), _) if **present == wanted => {}
                (Some(present), Some(other)) if excludes_ours(other, subnet) => {
                    changes.remove.push((*present).clone());
                    if !is_equivalent(other, &wanted) {
                        changes.conflicts.push((subnet, (*other).clone()));
                    }
                }
                (Some(present), _) => changes.replace.push(((*present).clone(), wanted)),
                // flannel left it or a person added it, and it leads to the same next hop.
                (None, Some(other)) if is_equivalent(other, &wanted) => {}
                (None, Some(other)) => changes.conflicts.push((subnet, (*other).clone())),
                (None, None) => changes.add.push(wanted),
            }
        }
        changes
    }
}

/// Whether the kernel refuses a route of ours to `subnet` while this one exists.
fn excludes_ours(route: &Route, subnet: Ipv4Net) -> bool {
    (route.destination, route.metric, route.tos) == (subnet, 0, 0)
}

fn is_equivalent(one: &Route, other: &Route) -> bool {
    one.unicast && (one.gateway, one.ifindex) == (other.gateway, other.ifindex)
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
