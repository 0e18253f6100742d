//! Routes into the overlay: what must change so that the kernel sends every leased subnet
//! to the overlay device.
//!
//! A route reads `<subnet> via <subnet's network address> dev flannel.<VNI> onlink`, as
//! flannel installs it. A TUN device has no neighbours and ignores the gateway, but people
//! and scripts that look at `ip route` find what they know.
//!
//! With `DirectRouting`, the route to a peer on the same link reads `<subnet> via <its public
//! address> dev <link>`, as flannel's: no encapsulation.
//!
//! A route is ours when it has our protocol number, lies in our network, and goes over our
//! device or directly to a peer. All others are never touched: not those of another
//! instance, not those of people.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use futures_util::{StreamExt, stream};
use ipnet::Ipv4Net;

use super::netlink::{Netlink, NetlinkError, ROUTE_PROTOCOL, Route};

/// How packets get to a peer's subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through the overlay device.
    Tunnel,
    /// Plain, to the peer itself, which is on the same link.
    Direct {
        /// The peer's public address.
        gateway: Ipv4Addr,
        /// Index of the link.
        ifindex: u32,
    },
}

/// Which routes are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Realm {
    /// The overlay network.
    pub network: Ipv4Net,
    /// Index of the overlay device.
    pub device: u32,
    /// A subnet whose packets are discarded where no other route takes them: our own, so
    /// that none for a container that is gone leaves by the default route
    /// (`--ip-blackhole-route`).
    pub blackhole: Option<Ipv4Net>,
}

/// Requests that are on their way to the kernel at a time.
const AT_ONCE: usize = 64;

/// Behind every other route of the prefix: a bridge's own must win. flannel's blackhole has
/// metric 0, and then the one wins that came first.
const BLACKHOLE_METRIC: u32 = u32::MAX;

/// Why one subnet has no route, or an old one could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Somebody else has a route for just this prefix.
    #[error(
        "no route to {subnet} was installed, because there is one that is not ours: \
         {existing}; remove it or keep that subnet out of the overlay"
    )]
    Conflict {
        /// The leased subnet.
        subnet: Ipv4Net,
        /// The foreign route, much as `ip route` prints it.
        existing: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// What to change to get from the kernel's routes to the desired ones.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Ours, but for no desired subnet or a duplicate.
    pub remove: Vec<Route>,
    /// Ours and for a desired subnet, but with another next hop: old and new.
    pub replace: Vec<(Route, Route)>,
    /// Desired subnets without a route.
    pub add: Vec<Route>,
    /// Desired subnets for whose very prefix there is a foreign route.
    pub conflicts: Vec<(Ipv4Net, Route)>,
}

impl Plan {
    /// Whether the kernel has what is desired, conflicts aside.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.replace.is_empty() && self.add.is_empty()
    }
}

/// What applying a plan did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Routes added.
    pub added: usize,
    /// Routes whose next hop was corrected.
    pub replaced: usize,
    /// Routes removed.
    pub removed: usize,
    /// What failed, each for one subnet; the others are done.
    pub failed: Vec<(Ipv4Net, RouteError)>,
    /// Prefixes in the network for which there are routes that are not ours.
    pub foreign: BTreeSet<Ipv4Net>,
}

/// The route to a peer's `subnet` over the overlay device with index `device`.
#[must_use]
pub fn overlay_route(subnet: Ipv4Net, device: u32) -> Route {
    Route {
        onlink: true,
        ..Route::ours(subnet, Some(subnet.network()), device)
    }
}

impl Realm {
    fn route(self, subnet: Ipv4Net, way: Way) -> Route {
        match way {
            Way::Tunnel => overlay_route(subnet, self.device),
            Way::Direct { gateway, ifindex } => Route::ours(subnet, Some(gateway), ifindex),
        }
    }

    fn owns(self, route: &Route) -> bool {
        let to_a_peer = route.gateway.is_some_and(|gateway| {
            // Another instance's device route goes by the subnet's own address.
            gateway != route.destination.network()
        });
        route.protocol == ROUTE_PROTOCOL
            && (route.ifindex == Some(self.device)
                || (to_a_peer && self.network.contains(&route.destination)))
    }
}

/// Compares the `desired` subnets of the peers with the routes the `kernel` has.
#[must_use]
pub fn plan(desired: &BTreeMap<Ipv4Net, Way>, kernel: &[Route], realm: Realm) -> Plan {
    let mut plan = Plan::default();
    let mut ours: BTreeMap<Ipv4Net, &Route> = BTreeMap::new();
    let mut foreign: BTreeMap<Ipv4Net, &Route> = BTreeMap::new();
    let mut blackhole = realm.blackhole;
    for route in kernel {
        let subnet = route.destination;
        if route.protocol == ROUTE_PROTOCOL && !route.unicast {
            if blackhole == Some(subnet) {
                blackhole = None;
            } else if realm.network.contains(&subnet) {
                plan.remove.push(route.clone());
            }
        } else if !realm.owns(route) {
            let known = foreign.entry(subnet).or_insert(route);
            // Of several, the one that leaves no room for ours.
            if takes_place(route, subnet) {
                *known = route;
            }
        } else if !desired.contains_key(&subnet) || ours.contains_key(&subnet) {
            plan.remove.push(route.clone());
        } else {
            ours.insert(subnet, route);
        }
    }
    plan.add.extend(blackhole.map(|subnet| Route {
        ifindex: None,
        unicast: false,
        metric: BLACKHOLE_METRIC,
        ..Route::ours(subnet, None, 0)
    }));
    for (&subnet, &way) in desired {
        let wanted = realm.route(subnet, way);
        match (ours.get(&subnet), foreign.get(&subnet)) {
            (Some(present), _) if **present == wanted => {}
            (Some(present), Some(other)) if takes_place(other, subnet) => {
                plan.remove.push((*present).clone());
                if !leads_alike(other, &wanted) {
                    plan.conflicts.push((subnet, (*other).clone()));
                }
            }
            (Some(present), _) => plan.replace.push(((*present).clone(), wanted)),
            // flannel left it, or a person made it: it leads where ours would.
            (None, Some(other)) if leads_alike(other, &wanted) => {}
            (None, Some(other)) => plan.conflicts.push((subnet, (*other).clone())),
            (None, None) => plan.add.push(wanted),
        }
    }
    plan
}

/// Whether the kernel takes no route of ours to `subnet` beside this one.
fn takes_place(route: &Route, subnet: Ipv4Net) -> bool {
    (route.destination, route.metric, route.tos) == (subnet, 0, 0)
}

fn leads_alike(one: &Route, other: &Route) -> bool {
    one.unicast && (one.gateway, one.ifindex) == (other.gateway, other.ifindex)
}

/// Brings the kernel's routes to the `desired` subnets. Doing it again does nothing.
///
/// # Errors
///
/// Only when the kernel's routes can't be read; what fails for one subnet is in
/// [`Outcome::failed`].
pub async fn reconcile(
    netlink: &Netlink,
    desired: &BTreeMap<Ipv4Net, Way>,
    realm: Realm,
) -> Result<Outcome, NetlinkError> {
    let kernel = netlink.routes().await?;
    let mut outcome = apply(netlink, plan(desired, &kernel, realm)).await;
    let others = kernel.iter().filter(|route| !realm.owns(route));
    outcome.foreign = others
        .map(|route| route.destination)
        .filter(|prefix| realm.network.contains(prefix))
        .collect();
    Ok(outcome)
}

/// Carries out a plan. One failure doesn't stop the rest.
pub async fn apply(netlink: &Netlink, plan: Plan) -> Outcome {
    let mut outcome = Outcome::default();
    for (subnet, existing) in plan.conflicts {
        let existing = existing.to_string();
        let conflict = RouteError::Conflict { subnet, existing };
        outcome.failed.push((subnet, conflict));
    }
    let removing = plan.remove.iter().map(async |route| {
        let removed = remove(netlink, route).await;
        (route.destination, removed)
    });
    outcome.removed = outcome.note(together(removing).await);
    let replacing = plan.replace.iter().map(async |(old, new)| {
        let replaced = replace(netlink, old, new).await;
        (new.destination, replaced)
    });
    outcome.replaced = outcome.note(together(replacing).await);
    let adding = plan.add.iter().map(async |route| {
        let added = add(netlink, route).await;
        (route.destination, added)
    });
    outcome.added = outcome.note(together(adding).await);
    outcome
}

/// How the way to a subnet changes; `None` is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WayChange {
    /// The peer's subnet.
    pub subnet: Ipv4Net,
    /// The way it had until now.
    pub before: Option<Way>,
    /// The way it has from now on.
    pub after: Option<Way>,
}

/// Follows changes of some peers without reading the kernel's routes. Where those are not
/// what they should have been, something fails or is left, for [`reconcile`] to find; a route
/// of another metric for the very prefix is not noticed, so subnets that have one
/// ([`Outcome::foreign`]) are for [`reconcile`] too.
pub async fn follow(netlink: &Netlink, changes: &[WayChange], realm: Realm) -> Outcome {
    let following = changes.iter().map(async |change| {
        let route = |way: Option<Way>| way.map(|way| realm.route(change.subnet, way));
        let followed = match (route(change.before), route(change.after)) {
            (Some(old), Some(new)) => replace(netlink, &old, &new).await,
            (Some(old), None) => remove(netlink, &old).await,
            (None, Some(new)) => add(netlink, &new).await,
            (None, None) => Ok(()),
        };
        (change.subnet, followed)
    });
    let mut outcome = Outcome::default();
    let followed = together(following).await;
    outcome.note(followed);
    outcome
}

/// Waits for all, some at a time: an answer of the kernel costs less than the way to it.
async fn together<T>(requests: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    stream::iter(requests)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await
}

impl Outcome {
    /// Notes what failed; returns how much did not.
    fn note(&mut self, done: Vec<(Ipv4Net, Result<(), RouteError>)>) -> usize {
        let (all, before) = (done.len(), self.failed.len());
        let failed = done
            .into_iter()
            .filter_map(|(subnet, done)| Some((subnet, done.err()?)));
        self.failed.extend(failed);
        all - (self.failed.len() - before)
    }
}

async fn remove(netlink: &Netlink, route: &Route) -> Result<(), RouteError> {
    match netlink.delete_route(route).await {
        Err(error) if !error.is_missing() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Deletes and adds: the kernel's own replacement takes the first route with the prefix,
/// which need not be ours by then.
async fn replace(netlink: &Netlink, old: &Route, new: &Route) -> Result<(), RouteError> {
    remove(netlink, old).await?;
    add(netlink, new).await
}

async fn add(netlink: &Netlink, route: &Route) -> Result<(), RouteError> {
    match netlink.add_route(route).await {
        // Somebody was faster than us since the kernel's routes were read.
        Err(error) if error.is_exists() => Err(RouteError::Conflict {
            subnet: route.destination,
            existing: "one that appeared just now".into(),
        }),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: u32 = 7;
    const BOOT: u8 = 3;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    const REALM: Realm = Realm {
        network: Ipv4Net::new_assert(Ipv4Addr::new(10, 3, 0, 0), 16),
        device: DEVICE,
        blackhole: None,
    };

    fn desired(subnets: &[&str]) -> BTreeMap<Ipv4Net, Way> {
        let subnets = subnets.iter();
        subnets.map(|text| (net(text), Way::Tunnel)).collect()
    }

    fn ours(subnet: &str) -> Route {
        overlay_route(net(subnet), DEVICE)
    }

    #[test]
    fn a_route_goes_by_the_subnets_own_address() {
        let route = ours("10.3.5.0/24");
        assert_eq!(
            route.to_string(),
            "10.3.5.0/24 via 10.3.5.0 dev #7 onlink proto 158"
        );
    }

    #[test]
    fn missing_are_added_and_stale_removed() {
        let kernel = [ours("10.3.5.0/24"), ours("10.3.6.0/24")];
        let plan = plan(&desired(&["10.3.6.0/24", "10.3.7.0/24"]), &kernel, REALM);
        assert_eq!(plan.remove, [ours("10.3.5.0/24")]);
        assert_eq!(plan.add, [ours("10.3.7.0/24")]);
        assert!(plan.replace.is_empty() && plan.conflicts.is_empty());
    }

    #[test]
    fn what_is_right_is_left() {
        let kernel = [ours("10.3.5.0/24")];
        assert!(plan(&desired(&["10.3.5.0/24"]), &kernel, REALM).is_empty());
    }

    #[test]
    fn a_wrong_next_hop_is_corrected() {
        let crooked = Route {
            gateway: Some("10.3.5.1".parse().unwrap()),
            ..ours("10.3.5.0/24")
        };
        let plan = plan(
            &desired(&["10.3.5.0/24"]),
            std::slice::from_ref(&crooked),
            REALM,
        );
        assert_eq!(plan.replace, [(crooked, ours("10.3.5.0/24"))]);
        assert!(plan.add.is_empty() && plan.remove.is_empty());
    }

    #[test]
    fn foreign_routes_are_never_touched() {
        let on_other_device = Route {
            ifindex: Some(9),
            ..ours("10.3.5.0/24")
        };
        let by_a_person = Route {
            protocol: BOOT,
            ..ours("10.3.6.0/24")
        };
        let plan = plan(&desired(&[]), &[on_other_device, by_a_person], REALM);
        assert!(plan.is_empty() && plan.conflicts.is_empty());
    }

    #[test]
    fn a_foreign_route_of_the_same_prefix_is_a_conflict_for_it_alone() {
        let foreign = Route {
            protocol: BOOT,
            ifindex: Some(2),
            metric: 100,
            ..ours("10.3.5.0/24")
        };
        assert!(!leads_alike(&foreign, &ours("10.3.5.0/24")));
        let wider = Route {
            destination: net("10.3.0.0/16"),
            ..foreign.clone()
        };
        let kernel = [foreign.clone(), wider];
        let plan = plan(&desired(&["10.3.5.0/24", "10.3.6.0/24"]), &kernel, REALM);
        assert_eq!(plan.conflicts, [(net("10.3.5.0/24"), foreign)]);
        assert_eq!(plan.add, [ours("10.3.6.0/24")]);
    }

    #[test]
    fn of_two_of_ours_for_one_prefix_one_goes() {
        let second = Route {
            metric: 50,
            ..ours("10.3.5.0/24")
        };
        let kernel = [ours("10.3.5.0/24"), second.clone()];
        let plan = plan(&desired(&["10.3.5.0/24"]), &kernel, REALM);
        assert_eq!(plan.remove, [second]);
        assert!(plan.add.is_empty() && plan.replace.is_empty());
    }

    #[test]
    fn the_blackhole_comes_once_and_goes_when_it_is_not_wanted() {
        let subnet = net("10.3.9.0/24");
        let with = Realm {
            blackhole: Some(subnet),
            ..REALM
        };
        let none = BTreeMap::new();
        let added = plan(&none, &[], with).add;
        assert_eq!(added.len(), 1);
        assert_eq!((added[0].destination, added[0].unicast), (subnet, false));
        assert!(plan(&none, &added, with).is_empty());
        assert_eq!(plan(&none, &added, REALM).remove, added);
        let foreign = Route {
            protocol: BOOT,
            ..added[0].clone()
        };
        assert!(plan(&none, &[foreign], REALM).is_empty());
    }

    #[test]
    fn a_peer_on_the_link_is_reached_directly_and_loses_that_again() {
        let subnet = net("10.3.5.0/24");
        let way = Way::Direct {
            gateway: "192.0.2.5".parse().unwrap(),
            ifindex: 2,
        };
        let direct = Route::ours(subnet, Some("192.0.2.5".parse().unwrap()), 2);
        assert_eq!(
            direct.to_string(),
            "10.3.5.0/24 via 192.0.2.5 dev #2 proto 158"
        );
        let wanted = BTreeMap::from([(subnet, way)]);
        let tunnel = [ours("10.3.5.0/24")];
        let there = plan(&wanted, &tunnel, REALM);
        assert_eq!(there.replace, [(tunnel[0].clone(), direct.clone())]);
        assert!(plan(&wanted, std::slice::from_ref(&direct), REALM).is_empty());
        let back = plan(
            &desired(&["10.3.5.0/24"]),
            std::slice::from_ref(&direct),
            REALM,
        );
        assert_eq!(back.replace, [(direct.clone(), tunnel[0].clone())]);
        // Of an earlier life, when the peer was still there.
        let stale = plan(&desired(&[]), std::slice::from_ref(&direct), REALM);
        assert_eq!(stale.remove, std::slice::from_ref(&direct));
        // flannel's own, left behind, leads there too.
        let flannels = Route {
            protocol: BOOT,
            ..direct
        };
        let kept = plan(&wanted, &[flannels], REALM);
        assert!(kept.is_empty() && kept.conflicts.is_empty());
        // Another instance's, for another network.
        let other = Route::ours(net("10.9.5.0/24"), Some("192.0.2.5".parse().unwrap()), 2);
        assert!(plan(&desired(&[]), &[other], REALM).is_empty());
    }
}
