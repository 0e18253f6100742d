//! Routes to the peers' subnets.

use super::daemon::listed;
use crate::doctor::Finding;
use crate::doctor::facts::{Facts, Peer};
use crate::host::netlink::Route;
use crate::host::routes::overlay_route;

/// What is wrong with the way to one peer.
#[derive(Debug)]
enum Fault {
    /// There is no route over the device.
    Missing(Peer),
    /// Packets leave by another way, by this route where it is known.
    Elsewhere(Peer, String, Option<Route>),
}

/// Whether packets to each peer that is reached by the tunnel go to the device.
#[must_use]
pub fn peers(facts: &Facts) -> Finding {
    const CHECK: &str = "routes";
    let name = facts.device_name();
    let device = facts
        .device()
        .filter(|link| link.kind.as_deref() == Some("tun") && link.up);
    let Some(device) = device else {
        return Finding::skipped(CHECK, format!("there is no {name} that is up"));
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
                "{} of {} peers go to {name}",
                peers.len(),
                facts.peers().len()
            ),
        );
    };
    let seen: Vec<_> = faults.iter().map(describe).collect();
    let (cause, remedy) = match first {
        Fault::Missing(peer) => (
            "somebody removed the route (a network manager, networkctl reload), or the daemon could \
             not install it: its log says why",
            format!(
                "ip route add {0} via {1} dev {name} onlink; systemctl restart uvxlan mends all",
                peer.subnet,
                peer.subnet.network()
            ),
        ),
        Fault::Elsewhere(_, _, Some(route)) => (
            "a route of somebody else's takes the packets; the daemon leaves other people's routes alone",
            format!("ip route delete {}", command_words(facts, route)),
        ),
        Fault::Elsewhere(peer, ..) => (
            "a rule of policy routing, or a route outside of the main table, takes the packets",
            format!("ip rule; ip route get {}", inside(peer)),
        ),
    };
    Finding::error(CHECK, listed(&seen), cause, remedy)
}

/// A host of the peer's subnet: the second address, as the first is the network's own.
fn inside(peer: &Peer) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from_bits(peer.subnet.network().to_bits().wrapping_add(1))
}

fn judge(facts: &Facts, device: u32, peer: Peer) -> Option<Fault> {
    let wanted = overlay_route(peer.subnet, device);
    let routes = &facts.host.routes;
    // The main table first: its routes have names that a person can delete.
    let thief = routes
        .iter()
        .filter(|route| route.ifindex != Some(device) && peer.subnet.contains(&route.destination))
        .max_by_key(|route| route.destination.prefix_len());
    let present = routes.iter().any(|route| {
        route.destination == wanted.destination && route.ifindex == wanted.ifindex && route.unicast
    });
    if let Some(thief) = thief {
        let more_specific = thief.destination != peer.subnet;
        if more_specific || !present || thief.metric == 0 {
            let by = by_link(facts, thief.ifindex);
            return Some(Fault::Elsewhere(peer, by, Some(thief.clone())));
        }
    }
    if !present {
        return Some(Fault::Missing(peer));
    }
    match facts.host.lookups.get(&peer.subnet) {
        Some(Some(lookup)) if lookup.ifindex != device => {
            let by = by_link(facts, Some(lookup.ifindex));
            Some(Fault::Elsewhere(peer, by, None))
        }
        Some(None) => Some(Fault::Elsewhere(peer, "nowhere".into(), None)),
        _ => None,
    }
}

fn by_link(facts: &Facts, index: Option<u32>) -> String {
    index.map_or_else(
        || "nowhere".into(),
        |index| format!("to {}", facts.link_name(index)),
    )
}

fn describe(fault: &Fault) -> String {
    match fault {
        Fault::Missing(peer) => format!("no route to {}", peer.subnet),
        Fault::Elsewhere(peer, by, Some(route)) if route.destination != peer.subnet => {
            format!(
                "packets to {} in {} go {by}",
                route.destination, peer.subnet
            )
        }
        Fault::Elsewhere(peer, by, _) => format!("packets to {} go {by}", peer.subnet),
    }
}

/// The words by which `ip route delete` finds a route.
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
    use crate::doctor::{Outcome, samples};
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
        assert_eq!(finding.status, Outcome::Error);
        assert_eq!(finding.seen, "no route to 10.5.2.0/24");
        assert!(
            finding
                .remedy
                .contains("ip route add 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink")
        );
    }

    #[test]
    fn a_route_that_takes_a_peers_packets_is_named() {
        for thief in [foreign("10.5.2.0/24", 0), foreign("10.5.2.128/25", 100)] {
            let mut facts = samples::healthy();
            facts.host.routes.push(thief.clone());
            let finding = peers(&facts);
            assert_eq!(finding.status, Outcome::Error, "{thief}");
            assert!(finding.seen.contains("go to eth0"), "{finding:?}");
            let command = format!(
                "ip route delete {} via 192.0.2.254 dev eth0",
                thief.destination
            );
            assert!(finding.remedy.starts_with(&command), "{finding:?}");
        }
    }

    #[test]
    fn a_route_that_loses_takes_nothing() {
        let mut facts = samples::healthy();
        facts.host.routes.push(foreign("10.5.2.0/24", 100));
        facts.host.routes.push(foreign("10.0.0.0/8", 0));
        assert_eq!(peers(&facts).status, Outcome::Ok);
    }

    #[test]
    fn policy_routing_is_seen_by_the_lookup() {
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
        assert_eq!(finding.status, Outcome::Error);
        assert!(finding.remedy.contains("ip rule"), "{finding:?}");
    }
}
