use super::*;

impl RouteChanges {
    /// Whether nothing needs to change, conflicts aside.
    pub(super) fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.replace.is_empty() && self.add.is_empty()
    }
}

const DEVICE: u32 = 7;
const BOOT: u8 = 3;

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

const OVERLAY: OverlayNetwork = OverlayNetwork {
    network: Ipv4Net::new_assert(Ipv4Addr::new(10, 3, 0, 0), 16),
    device: DEVICE,
    blackhole: None,
};

fn desired(subnets: &[&str]) -> BTreeMap<Ipv4Net, NextHop> {
    let subnets = subnets.iter();
    subnets.map(|text| (net(text), NextHop::Tunnel)).collect()
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
    let changes = OVERLAY.diff(&desired(&["10.3.6.0/24", "10.3.7.0/24"]), &kernel);
    assert_eq!(changes.remove, [ours("10.3.5.0/24")]);
    assert_eq!(changes.add, [ours("10.3.7.0/24")]);
    assert!(changes.replace.is_empty() && changes.conflicts.is_empty());
}

#[test]
fn what_is_right_is_left() {
    let kernel = [ours("10.3.5.0/24")];
    assert!(OVERLAY.diff(&desired(&["10.3.5.0/24"]), &kernel).is_empty());
}

#[test]
fn a_wrong_next_hop_is_corrected() {
    let crooked = Route {
        gateway: Some("10.3.5.1".parse().unwrap()),
        ..ours("10.3.5.0/24")
    };
    let changes = OVERLAY.diff(&desired(&["10.3.5.0/24"]), std::slice::from_ref(&crooked));
    assert_eq!(changes.replace, [(crooked, ours("10.3.5.0/24"))]);
    assert!(changes.add.is_empty() && changes.remove.is_empty());
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
    let changes = OVERLAY.diff(&desired(&[]), &[on_other_device, by_a_person]);
    assert!(changes.is_empty() && changes.conflicts.is_empty());
}

#[test]
fn a_foreign_route_of_the_same_prefix_is_a_conflict_for_it_alone() {
    let foreign = Route {
        protocol: BOOT,
        ifindex: Some(2),
        metric: 100,
        ..ours("10.3.5.0/24")
    };
    assert!(!is_equivalent(&foreign, &ours("10.3.5.0/24")));
    let wider = Route {
        destination: net("10.3.0.0/16"),
        ..foreign.clone()
    };
    let kernel = [foreign.clone(), wider];
    let changes = OVERLAY.diff(&desired(&["10.3.5.0/24", "10.3.6.0/24"]), &kernel);
    assert_eq!(changes.conflicts, [(net("10.3.5.0/24"), foreign)]);
    assert_eq!(changes.add, [ours("10.3.6.0/24")]);
}

#[test]
fn of_two_of_ours_for_one_prefix_one_goes() {
    let second = Route {
        metric: 50,
        ..ours("10.3.5.0/24")
    };
    let kernel = [ours("10.3.5.0/24"), second.clone()];
    let changes = OVERLAY.diff(&desired(&["10.3.5.0/24"]), &kernel);
    assert_eq!(changes.remove, [second]);
    assert!(changes.add.is_empty() && changes.replace.is_empty());
}

#[test]
fn the_blackhole_comes_once_and_goes_when_it_is_not_wanted() {
    let subnet = net("10.3.9.0/24");
    let with = OverlayNetwork {
        blackhole: Some(subnet),
        ..OVERLAY
    };
    let none = BTreeMap::new();
    let added = with.diff(&none, &[]).add;
    assert_eq!(added.len(), 1);
    assert_eq!((added[0].destination, added[0].unicast), (subnet, false));
    assert!(with.diff(&none, &added).is_empty());
    assert_eq!(OVERLAY.diff(&none, &added).remove, added);
    let foreign = Route {
        protocol: BOOT,
        ..added[0].clone()
    };
    assert!(OVERLAY.diff(&none, &[foreign]).is_empty());
}

#[test]
fn a_peer_on_the_link_is_reached_directly_and_loses_that_again() {
    let subnet = net("10.3.5.0/24");
    let next_hop = NextHop::Direct {
        gateway: "192.0.2.5".parse().unwrap(),
        ifindex: 2,
    };
    let direct = Route::ours(subnet, Some("192.0.2.5".parse().unwrap()), 2);
    assert_eq!(
        direct.to_string(),
        "10.3.5.0/24 via 192.0.2.5 dev #2 proto 158"
    );
    let wanted = BTreeMap::from([(subnet, next_hop)]);
    let tunnel = [ours("10.3.5.0/24")];
    let there = OVERLAY.diff(&wanted, &tunnel);
    assert_eq!(there.replace, [(tunnel[0].clone(), direct.clone())]);
    assert!(
        OVERLAY
            .diff(&wanted, std::slice::from_ref(&direct))
            .is_empty()
    );
    let back = OVERLAY.diff(&desired(&["10.3.5.0/24"]), std::slice::from_ref(&direct));
    assert_eq!(back.replace, [(direct.clone(), tunnel[0].clone())]);
    // Of an earlier life, when the peer was still there.
    let stale = OVERLAY.diff(&desired(&[]), std::slice::from_ref(&direct));
    assert_eq!(stale.remove, std::slice::from_ref(&direct));
    // flannel's own, left behind, leads there too.
    let flannels = Route {
        protocol: BOOT,
        ..direct
    };
    let kept = OVERLAY.diff(&wanted, &[flannels]);
    assert!(kept.is_empty() && kept.conflicts.is_empty());
    // Another instance's, for another network.
    let other = Route::ours(net("10.9.5.0/24"), Some("192.0.2.5".parse().unwrap()), 2);
    assert!(OVERLAY.diff(&desired(&[]), &[other]).is_empty());
}
