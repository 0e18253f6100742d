//! Routes to the peers' subnets.

use super::daemon::listed;
use crate::doctor::Finding;
use crate::doctor::facts::{Facts, PeerFacts};
use crate::host::netlink::Route;
use crate::host::routes::overlay_route;

/// What is wrong with the route to one peer.
#[derive(Debug)]
enum RouteFault {
    /// There is no route through the device.
    Missing(PeerFacts),
    /// Packets go elsewhere: where to, and the route that sends them there if known.
    Diverted(PeerFacts, String, Option<Route>),
}

/// Whether the packets for each peer behind the tunnel go to the device.
pub(crate) fn peers(facts: &Facts) -> Finding {
    const CHECK: &str = "routes";
    let name = facts.device_name();
    let device = facts
        .device()
        .filter(|link| link.kind.as_deref() == Some("tun") && link.up);
    let Some(device) = device else {
        return Finding::skipped(CHECK, format!("{name} does not exist or is down"));
    };
    let peers: Vec<_> = facts
        .peers()
        .into_iter()
        .filter(|peer| peer.tunnel)
        .collect();
    let faults: Vec<_> = peers
        .iter()
        .filter_map(|peer| judge(facts, device.index, *peer))
        .collect();
    let Some(first) = faults.first() else {
        return Finding::ok(
            CHECK,
            format!(
                "{} of {} peers are routed to {name}",
                peers.len(),
                facts.peers().len()
            ),
        );
    };
    let seen: Vec<_> = faults.iter().map(describe).collect();
    let (cause, fix) = match first {
        RouteFault::Missing(peer) => (
            "something removed the route (a network manager, networkctl reload), or the daemon could \
             not install it; its log says why",
            format!(
                "ip route add {0} via {1} dev {name} onlink; systemctl restart uvxlan fixes all",
                peer.subnet,
                peer.subnet.network()
            ),
        ),
        RouteFault::Diverted(_, _, Some(route)) => (
            "another route takes the packets; the daemon does not touch routes that are not its own",
            format!("ip route delete {}", command_words(facts, route)),
        ),
        RouteFault::Diverted(peer, ..) => (
            "a policy routing rule, or a route in another table than main, takes the packets",
            format!("ip rule; ip route get {}", inside(peer)),
        ),
    };
    Finding::error(CHECK, listed(&seen), cause, fix)
}

/// A host in the peer's subnet: the second address, because the first is the network's.
fn inside(peer: &PeerFacts) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from_bits(peer.subnet.network().to_bits().wrapping_add(1))
}

fn judge(facts: &Facts, device: u32, peer: PeerFacts) -> Option<RouteFault> {
    let wanted = overlay_route(peer.subnet, device);
    let routes = &facts.host.routes;
    // The main table first, because a route found there can be named for deletion.
    let diverting = routes
        .iter()
        .filter(|route| route.ifindex != Some(device) && peer.subnet.contains(&route.destination))
        .max_by_key(|route| route.destination.prefix_len());
    let present = routes.iter().any(|route| {
        route.destination == wanted.destination && route.ifindex == wanted.ifindex && route.unicast
    });
    if let Some(diverting) = diverting {
        let more_specific = diverting.destination != peer.subnet;
        if more_specific || !present || diverting.metric == 0 {
            let by = by_link(facts, diverting.ifindex);
            return Some(RouteFault::Diverted(peer, by, Some(diverting.clone())));
        }
    }
    if !present {
        return Some(RouteFault::Missing(peer));
    }
    match facts.host.lookups.get(&peer.subnet) {
        Some(Some(lookup)) if lookup.ifindex != device => {
            let by = by_link(facts, Some(lookup.ifindex));
            Some(RouteFault::Diverted(peer, by, None))
        }
        Some(None) => Some(RouteFault::Diverted(peer, "nowhere".into(), None)),
        _ => None,
    }
}

fn by_link(facts: &Facts, index: Option<u32>) -> String {
    index.map_or_else(
        || "nowhere".into(),
        |index| format!("to {}", facts.link_name(index)),
    )
}

fn describe(fault: &RouteFault) -> String {
    match fault {
        RouteFault::Missing(peer) => format!("no route to {}", peer.subnet),
        RouteFault::Diverted(peer, by, Some(route)) if route.destination != peer.subnet => {
            format!(
                "packets to {} in {} go {by}",
                route.destination, peer.subnet
            )
        }
        RouteFault::Diverted(peer, by, _) => format!("packets to {} go {by}", peer.subnet),
    }
}

/// The arguments with which `ip route delete` finds a route.
fn command_words(facts: &Facts, route: &Route) -> String {
    let mut words = route.destination.to_string();
    if !route.unicast {
        words = format!("blackhole {words}");
    }
    if let Some(gateway) = route.gateway {
        words.push_str(&format!(" via {gateway}"));
    }
    if let Some(index) = route.ifindex {
        words.push_str(&format!(" dev {}", facts.link_name(index)));
    }
    if route.metric != 0 {
        words.push_str(&format!(" metric {}", route.metric));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{FindingStatus, samples};
    use crate::host::netlink::RouteLookup;

    fn foreign(destination: &str, metric: u32) -> Route {
        Route {
            protocol: 3,
            metric,
            ..Route::ours(
                destination.parse().unwrap(),
                Some("192.0.2.254".parse().unwrap()),
                2,
            )
        }
    }

    #[test]
    fn a_missing_route_is_named_with_the_command() {
        let mut facts = samples::healthy();
        facts.host.routes.clear();
        let finding = peers(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert_eq!(finding.seen, "no route to 10.5.2.0/24");
        assert!(
            finding
                .fix
                .contains("ip route add 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink")
        );
    }

    #[test]
    fn a_diverting_route_is_named() {
        for diverting in [foreign("10.5.2.0/24", 0), foreign("10.5.2.128/25", 100)] {
            let mut facts = samples::healthy();
            facts.host.routes.push(diverting.clone());
            let finding = peers(&facts);
            assert_eq!(finding.status, FindingStatus::Error, "{diverting}");
            assert!(finding.seen.contains("go to eth0"), "{finding:?}");
            let command = format!(
                "ip route delete {} via 192.0.2.254 dev eth0",
                diverting.destination
            );
            assert!(finding.fix.starts_with(&command), "{finding:?}");
        }
    }

    #[test]
    fn a_route_of_lower_preference_diverts_nothing() {
        let mut facts = samples::healthy();
        facts.host.routes.push(foreign("10.5.2.0/24", 100));
        facts.host.routes.push(foreign("10.0.0.0/8", 0));
        assert_eq!(peers(&facts).status, FindingStatus::Ok);
    }

    #[test]
    fn policy_routing_is_found_by_the_lookup() {
        let mut facts = samples::healthy();
        let lookup = RouteLookup {
            ifindex: 2,
            prefsrc: None,
            gateway: None,
            local: false,
        };
        let subnet = facts.peers()[0].subnet;
        facts.host.lookups.insert(subnet, Some(lookup));
        let finding = peers(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.fix.contains("ip rule"), "{finding:?}");
    }
}
