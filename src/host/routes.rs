//! Routes into the overlay: what must change so that the kernel sends every leased subnet
//! to the overlay device.
//!
//! A route reads `<subnet> via <subnet's network address> dev flannel.<VNI> onlink`, as
//! flannel installs it. A TUN device has no neighbours and ignores the gateway, but people
//! and scripts that look at `ip route` find what they know.
//!
//! A route is ours when it has our protocol number and our device. All others are never
//! touched: not those of another instance, not those of people.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;

use super::netlink::{Netlink, NetlinkError, ROUTE_PROTOCOL, Route};

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
}

/// The route to a peer's `subnet` over the overlay device with index `device`.
#[must_use]
pub fn overlay_route(subnet: Ipv4Net, device: u32) -> Route {
    Route {
        onlink: true,
        ..Route::ours(subnet, Some(subnet.network()), device)
    }
}

/// Compares the `desired` subnets of the peers with the routes the `kernel` has.
#[must_use]
pub fn plan(desired: &BTreeSet<Ipv4Net>, kernel: &[Route], device: u32) -> Plan {
    let mut plan = Plan::default();
    let mut ours: BTreeMap<Ipv4Net, &Route> = BTreeMap::new();
    let mut foreign: BTreeMap<Ipv4Net, &Route> = BTreeMap::new();
    for route in kernel {
        let subnet = route.destination;
        if !is_ours(route, device) {
            foreign.entry(subnet).or_insert(route);
        } else if !desired.contains(&subnet) || ours.contains_key(&subnet) {
            plan.remove.push(route.clone());
        } else {
            ours.insert(subnet, route);
        }
    }
    for &subnet in desired {
        let wanted = overlay_route(subnet, device);
        match (ours.get(&subnet), foreign.get(&subnet)) {
            (Some(present), _) if **present == wanted => {}
            (Some(present), _) => plan.replace.push(((*present).clone(), wanted)),
            (None, Some(other)) => plan.conflicts.push((subnet, (*other).clone())),
            (None, None) => plan.add.push(wanted),
        }
    }
    plan
}

fn is_ours(route: &Route, device: u32) -> bool {
    route.protocol == ROUTE_PROTOCOL && route.ifindex == Some(device)
}

/// Brings the kernel's routes over `device` to the `desired` subnets. Doing it again does
/// nothing.
///
/// # Errors
///
/// Only when the kernel's routes can't be read; what fails for one subnet is in
/// [`Outcome::failed`].
pub async fn reconcile(
    netlink: &Netlink,
    desired: &BTreeSet<Ipv4Net>,
    device: u32,
) -> Result<Outcome, NetlinkError> {
    let kernel = netlink.routes().await?;
    Ok(apply(netlink, plan(desired, &kernel, device)).await)
}

/// Carries out a plan. One failure doesn't stop the rest.
pub async fn apply(netlink: &Netlink, plan: Plan) -> Outcome {
    let mut outcome = Outcome::default();
    for (subnet, existing) in plan.conflicts {
        let existing = existing.to_string();
        let conflict = RouteError::Conflict { subnet, existing };
        outcome.failed.push((subnet, conflict));
    }
    for route in plan.remove {
        match netlink.delete_route(&route).await {
            Ok(()) => outcome.removed += 1,
            Err(error) if error.is_missing() => outcome.removed += 1,
            Err(error) => outcome.failed.push((route.destination, error.into())),
        }
    }
    for (old, new) in plan.replace {
        match replace(netlink, &old, &new).await {
            Ok(()) => outcome.replaced += 1,
            Err(error) => outcome.failed.push((new.destination, error)),
        }
    }
    for route in plan.add {
        match add(netlink, &route).await {
            Ok(()) => outcome.added += 1,
            Err(error) => outcome.failed.push((route.destination, error)),
        }
    }
    outcome
}

/// Deletes and adds: the kernel's own replacement takes the first route with the prefix,
/// which need not be ours by then.
async fn replace(netlink: &Netlink, old: &Route, new: &Route) -> Result<(), RouteError> {
    match netlink.delete_route(old).await {
        Err(error) if !error.is_missing() => return Err(error.into()),
        _ => {}
    }
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
mod tests {
    use super::*;

    const DEVICE: u32 = 7;
    const BOOT: u8 = 3;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn desired(subnets: &[&str]) -> BTreeSet<Ipv4Net> {
        subnets.iter().map(|text| net(text)).collect()
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
        let plan = plan(&desired(&["10.3.6.0/24", "10.3.7.0/24"]), &kernel, DEVICE);
        assert_eq!(plan.remove, [ours("10.3.5.0/24")]);
        assert_eq!(plan.add, [ours("10.3.7.0/24")]);
        assert!(plan.replace.is_empty() && plan.conflicts.is_empty());
    }

    #[test]
    fn what_is_right_is_left() {
        let kernel = [ours("10.3.5.0/24")];
        assert!(plan(&desired(&["10.3.5.0/24"]), &kernel, DEVICE).is_empty());
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
            DEVICE,
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
        let plan = plan(&desired(&[]), &[on_other_device, by_a_person], DEVICE);
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
        let wider = Route {
            destination: net("10.3.0.0/16"),
            ..foreign.clone()
        };
        let kernel = [foreign.clone(), wider];
        let plan = plan(&desired(&["10.3.5.0/24", "10.3.6.0/24"]), &kernel, DEVICE);
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
        let plan = plan(&desired(&["10.3.5.0/24"]), &kernel, DEVICE);
        assert_eq!(plan.remove, [second]);
        assert!(plan.add.is_empty() && plan.replace.is_empty());
    }
}
