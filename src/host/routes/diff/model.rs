//! Random histories of leases, links and people against a model of the kernel's table.

use proptest::prelude::*;

use super::*;

const DEVICE: u32 = 7;
const LINK: u32 = 2;
const BOOT: u8 = 3;
const OVERLAY: OverlayNetwork = OverlayNetwork {
    network: Ipv4Net::new_assert(Ipv4Addr::new(10, 3, 0, 0), 16),
    device: DEVICE,
    blackhole: None,
};

/// What happens to a host.
#[derive(Debug, Clone)]
enum Step {
    /// A lease comes, or its peer moves on or off our link.
    Lease(u8, bool),
    /// A lease goes.
    Expire(u8),
    /// Somebody removes the n-th route there is.
    Delete(usize),
    /// Somebody adds a route to a peer's subnet, by this protocol, link and metric.
    Add(u8, u8, u32, u32),
    /// The device, or the link, goes down: the kernel removes its routes.
    Down(u32),
    /// An earlier life left a route to a subnet, through the tunnel or not.
    Stale(u8, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0..12u8;
    prop_oneof![
        4 => (number.clone(), any::<bool>()).prop_map(|(n, direct)| Step::Lease(n, direct)),
        2 => number.clone().prop_map(Step::Expire),
        2 => (0..30usize).prop_map(Step::Delete),
        2 => (
            number.clone(),
            prop_oneof![Just(BOOT), Just(ROUTE_PROTOCOL)],
            prop_oneof![Just(LINK), Just(9), Just(DEVICE)],
            0..2u32,
        )
            .prop_map(|(n, protocol, link, metric)| Step::Add(n, protocol, link, metric)),
        1 => prop_oneof![Just(DEVICE), Just(LINK)].prop_map(Step::Down),
        1 => (number, any::<bool>()).prop_map(|(n, direct)| Step::Stale(n, direct)),
    ]
}

fn subnet(number: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 3, number, 0), 24)
}

fn next_hop(number: u8, direct: bool) -> NextHop {
    match direct {
        false => NextHop::Tunnel,
        true => NextHop::Direct {
            gateway: Ipv4Addr::new(192, 0, 2, number + 1),
            ifindex: LINK,
        },
    }
}

/// The kernel takes one route for each prefix and metric.
fn add(kernel: &mut Vec<Route>, route: Route) -> bool {
    let same = |other: &Route| {
        (other.destination, other.metric, other.tos) == (route.destination, route.metric, route.tos)
    };
    let free = !kernel.iter().any(same);
    if free {
        kernel.push(route);
    }
    free
}

fn happen(kernel: &mut Vec<Route>, desired: &mut BTreeMap<Ipv4Net, NextHop>, step: &Step) {
    match *step {
        Step::Lease(number, direct) => {
            desired.insert(subnet(number), next_hop(number, direct));
        }
        Step::Expire(number) => {
            desired.remove(&subnet(number));
        }
        Step::Delete(number) if !kernel.is_empty() => {
            kernel.remove(number % kernel.len());
        }
        Step::Delete(_) => {}
        Step::Add(number, protocol, link, metric) => {
            let gateway = Some(Ipv4Addr::new(192, 0, 2, 200));
            let route = Route {
                protocol,
                metric,
                ..Route::ours(subnet(number), gateway, link)
            };
            add(kernel, route);
        }
        Step::Down(link) => kernel.retain(|route| route.ifindex != Some(link)),
        Step::Stale(number, direct) => {
            let route = OVERLAY.route(subnet(number), next_hop(number, direct));
            add(kernel, route);
        }
    }
}

fn carry_out(kernel: &mut Vec<Route>, changes: &RouteChanges) {
    let remove = |kernel: &mut Vec<Route>, route: &Route| {
        let at = kernel.iter().position(|other| other == route);
        kernel.remove(at.expect("only routes that are there are removed"));
    };
    for route in &changes.remove {
        remove(kernel, route);
    }
    for (old, new) in &changes.replace {
        remove(kernel, old);
        assert!(add(kernel, new.clone()), "no room for {new}");
    }
    for route in &changes.add {
        assert!(add(kernel, route.clone()), "no room for {route}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn any_history_ends_in_the_wanted_routes_and_foreign_ones_stay(
        steps in proptest::collection::vec(step(), 1..40)
    ) {
        let mut kernel = Vec::new();
        let mut desired = BTreeMap::new();
        for step in &steps {
            happen(&mut kernel, &mut desired, step);
            let is_foreign = |route: &&Route| !OVERLAY.owns(route);
            let foreign: Vec<_> = kernel.iter().filter(is_foreign).cloned().collect();
            let changes = OVERLAY.diff(&desired, &kernel);
            carry_out(&mut kernel, &changes);

            let left: Vec<_> = kernel.iter().filter(is_foreign).cloned().collect();
            prop_assert_eq!(&left, &foreign, "after {:?}", step);
            for (subnet, next_hop) in &desired {
                let wanted = OVERLAY.route(*subnet, *next_hop);
                let present = kernel.contains(&wanted);
                let in_the_way = foreign.iter().any(|route| route.destination == *subnet);
                prop_assert!(present || in_the_way, "no {} after {:?}", wanted, step);
                let alike = foreign.iter().any(|route| is_equivalent(route, &wanted));
                let told = changes.conflicts.iter().any(|(other, _)| other == subnet);
                prop_assert!(present || alike || told, "{} is missing and not told", wanted);
            }
            let ours = kernel.iter().filter(|route| OVERLAY.owns(route));
            for route in ours {
                let next_hop = desired.get(&route.destination);
                prop_assert!(next_hop.is_some(), "{} is stale after {:?}", route, step);
                let wanted = next_hop.map(|hop| OVERLAY.route(route.destination, *hop));
                prop_assert_eq!(Some(route.clone()), wanted);
            }
            prop_assert!(OVERLAY.diff(&desired, &kernel).is_empty(), "not settled after {:?}", step);
        }
    }
}
