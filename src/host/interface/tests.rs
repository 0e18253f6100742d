//! The IPv4 rows of flannel's `pkg/ipmatch/match_test.go`, and the rules around them.

use super::*;

fn address(ifindex: u32, text: &str) -> AddressInfo {
    AddressInfo {
        ifindex,
        address: text.parse().unwrap(),
        prefix_len: 24,
        scope: 0,
        deprecated: false,
        permanent: true,
        temporary: false,
    }
}

fn link(index: u32, name: &str, addresses: &[&str]) -> HostLink {
    HostLink {
        index,
        name: name.into(),
        mtu: 1500,
        addresses: addresses.iter().map(|text| address(index, text)).collect(),
    }
}

/// The host of flannel's test, with an ordinary default route.
fn host() -> Snapshot {
    let dummy = [
        "1.10.100.1",
        "192.168.200.128",
        "172.16.30.18",
        "172.16.31.200",
        "172.16.32.100",
        "2001:db8::1",
    ];
    Snapshot {
        links: vec![
            link(1, "lo", &["127.0.0.1"]),
            link(2, "eth0", &["10.0.0.5"]),
            link(3, "dummy0", &dummy),
        ],
        default_route: Some(2),
        can_reach: None,
    }
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn iface(texts: &[&str]) -> Selection {
    Selection {
        interfaces: strings(texts),
        ..Selection::default()
    }
}

fn pattern(texts: &[&str]) -> Selection {
    Selection {
        patterns: strings(texts),
        ..Selection::default()
    }
}

/// Name, tunnel address and published address of the choice.
fn chosen(selection: &Selection, host: &Snapshot) -> (String, Ipv4Addr, Ipv4Addr) {
    let chosen = choose(selection, host).unwrap();
    (chosen.name, chosen.address, chosen.public_ip)
}

fn expect(selection: &Selection, name: &str, address: &str, public: &str) {
    let expected = (name.to_owned(), ip(address), ip(public));
    assert_eq!(chosen(selection, &host()), expected, "{selection:?}");
}

#[test]
fn flannels_own_table() {
    let sent = "192.168.200.128";
    expect(&pattern(&[r"192\.168\.200\.\d+"]), "dummy0", sent, sent);
    for selection in [pattern(&[r"dummy\d+"]), iface(&["dummy0"])] {
        expect(&selection, "dummy0", "1.10.100.1", "1.10.100.1");
    }
    let sent = "172.16.30.18";
    expect(&iface(&[sent]), "dummy0", sent, sent);
    let behind_nat = Selection {
        public_ip: Some(ip("172.16.31.200")),
        ..pattern(&[r"172\.16\.30\.\d+"])
    };
    expect(&behind_nat, "dummy0", sent, "172.16.31.200");
}

#[test]
fn can_reach_takes_the_routes_source() {
    let selection = Selection {
        can_reach: Some(ip("172.16.32.254")),
        ..Selection::default()
    };
    let mut host = host();
    host.can_reach = Some((3, Some(ip("172.16.32.100"))));
    let expected = (
        "dummy0".to_owned(),
        ip("172.16.32.100"),
        ip("172.16.32.100"),
    );
    assert_eq!(chosen(&selection, &host), expected);
    host.can_reach = None;
    let error = choose(&selection, &host).unwrap_err().to_string();
    assert!(error.contains("no route to 172.16.32.254"), "{error}");
}

#[test]
fn nothing_given_means_the_default_route() {
    expect(&Selection::default(), "eth0", "10.0.0.5", "10.0.0.5");
    let mut host = host();
    host.default_route = None;
    let error = choose(&Selection::default(), &host)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("--iface") && error.contains("eth0 10.0.0.5"),
        "{error}"
    );
}

#[test]
fn public_ip_alone_must_be_local() {
    let alone = |text| Selection {
        public_ip: Some(ip(text)),
        ..Selection::default()
    };
    expect(
        &alone("172.16.31.200"),
        "dummy0",
        "172.16.31.200",
        "172.16.31.200",
    );
    assert!(choose(&alone("203.0.113.9"), &host()).is_err());
}

#[test]
fn public_ip_beside_an_interface_may_be_anywhere() {
    let selection = Selection {
        public_ip: Some(ip("203.0.113.9")),
        ..iface(&["eth0"])
    };
    expect(&selection, "eth0", "10.0.0.5", "203.0.113.9");
}

#[test]
fn the_first_that_can_be_used_wins() {
    expect(
        &iface(&["eth9", "198.51.100.1", "eth0", "dummy0"]),
        "eth0",
        "10.0.0.5",
        "10.0.0.5",
    );
    // A pattern that is no regular expression is passed over too.
    let both = Selection {
        patterns: strings(&["[", "^eth"]),
        ..iface(&["eth9"])
    };
    expect(&both, "eth0", "10.0.0.5", "10.0.0.5");
}

#[test]
fn an_address_match_goes_before_a_name_match() {
    let mut host = host();
    host.links.insert(0, link(9, "net10", &["192.0.2.1"]));
    let (name, address, _) = chosen(&pattern(&["10"]), &host);
    assert_eq!((name.as_str(), address), ("eth0", ip("10.0.0.5")));
}

#[test]
fn addresses_are_ordered_as_flannel_orders_them() {
    let mut host = host();
    let addresses = [
        (address(2, "169.254.1.1"), [false, true, false]),
        (address(2, "10.0.0.1"), [true, true, false]),
        (address(2, "10.0.0.2"), [false, false, false]),
        (address(2, "10.0.0.3"), [false, true, true]),
        (address(2, "10.0.0.4"), [false, true, false]),
        (address(2, "10.0.0.5"), [false, true, false]),
    ];
    host.links[1].addresses = addresses
        .map(|(entry, [deprecated, permanent, temporary])| AddressInfo {
            deprecated,
            permanent,
            temporary,
            ..entry
        })
        .into();
    let order = [
        "10.0.0.4",
        "10.0.0.5",
        "10.0.0.3",
        "10.0.0.2",
        "169.254.1.1",
    ];
    assert_eq!(host.links[1].preferred(), order.map(ip));
}

#[test]
fn loopback_addresses_are_taken_only_when_named() {
    assert!(choose(&iface(&["lo"]), &host()).is_err());
    expect(&iface(&["127.0.0.1"]), "lo", "127.0.0.1", "127.0.0.1");
}

#[test]
fn a_link_without_mtu_is_refused() {
    let mut host = host();
    host.links[1].mtu = 0;
    let error = choose(&Selection::default(), &host)
        .unwrap_err()
        .to_string();
    assert!(error.contains("eth0 has no MTU"), "{error}");
}

#[test]
fn a_failure_lists_what_was_tried_and_seen() {
    let error = choose(&iface(&["eth9", "10.9.9.9"]), &host())
        .unwrap_err()
        .to_string();
    for part in [
        "eth9",
        "10.9.9.9",
        "lo 127.0.0.1",
        "eth0 10.0.0.5",
        "dummy0 1.10.100.1",
    ] {
        assert!(error.contains(part), "{part} not in: {error}");
    }
}
