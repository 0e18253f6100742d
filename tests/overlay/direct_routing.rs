//! `DirectRouting`: peers on the same link are reached directly, those behind a router through the
//! tunnel. Packets are counted where they arrive.

use uvxlan::testbed::{Host, Topology};

use crate::support::directory::DirectoryStore;
use crate::support::need;
use crate::support::nodes::{NodeUnderTest, eventually, possible};

const CONFIG: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;

/// Two hosts in one segment and a third behind a router, each with a daemon.
struct Segments {
    topology: Topology,
    _store: DirectoryStore,
}

impl Segments {
    fn new(direct: bool) -> (Self, [NodeUnderTest; 3]) {
        let topology = Topology::two_segments(2, 1).unwrap();
        let option = format!(r#""vxlan", "DirectRouting": {direct}"#);
        let store = DirectoryStore::new(&CONFIG.replace(r#""vxlan""#, &option));
        let start = |host: &Host| {
            // The router must not send redirects to the hosts.
            for name in ["all", "eth0"] {
                let name = format!("net/ipv4/conf/{name}/accept_redirects");
                host.node().sysctl(&name, "0").unwrap();
            }
            count_on_arrival(host);
            // No probes, since packets in the tunnel are counted here.
            store.start(host, &["--probe-interval=0"])
        };
        let nodes = [0, 1, 2].map(|number| start(&topology.hosts()[number]));
        let this = Self {
            topology,
            _store: store,
        };
        (this, nodes)
    }

    /// The router's address on the near link.
    fn router() -> &'static str {
        "192.0.2.254"
    }
}

/// Rules that count packets that arrive over the link: tunnelled, and plain.
fn count_on_arrival(host: &Host) {
    let rules = r#"table ip arrival {
        chain counted {
            type filter hook prerouting priority raw; policy accept;
            iifname eth0 udp dport 8472 counter comment "tunnelled"
            iifname eth0 ip saddr 10.5.0.0/16 counter comment "plain"
        }
    }"#;
    let mut command = std::process::Command::new("nft");
    command.arg(rules);
    let output = host.namespace().command(command).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Packets that arrived at a host so far: tunnelled, and plain.
fn arrived(node: &NodeUnderTest) -> [u64; 2] {
    let text = node.output("nft", &["list", "table", "ip", "arrival"]);
    ["tunnelled", "plain"].map(|kind| {
        let line = text.lines().find(|line| line.contains(kind)).unwrap();
        let count = line.split_once("packets ").unwrap().1;
        count.split(' ').next().unwrap().parse().unwrap()
    })
}

/// How ten echo requests and their replies arrive at the hosts of both ends.
fn ways(from: &NodeUnderTest, to: &NodeUnderTest) -> [[u64; 2]; 2] {
    let before = [arrived(from), arrived(to)];
    assert!(from.ping(to, 10).is_complete());
    let after = [arrived(from), arrived(to)];
    [0, 1].map(|end| [0, 1].map(|kind| after[end][kind] - before[end][kind]))
}

const TUNNELLED: [[u64; 2]; 2] = [[10, 0]; 2];
const PLAIN: [[u64; 2]; 2] = [[0, 10]; 2];

/// The route to a node's subnet, as `ip route` shows it.
fn route(from: &NodeUnderTest, to: &NodeUnderTest) -> String {
    let subnet = to.env.unwrap().subnet.to_string();
    from.output("ip", &["route", "show", &subnet])
}

fn tools() -> Result<(), String> {
    possible(&["ip", "nft"])
}

#[test]
fn peers_on_the_link_are_reached_directly_and_others_through_the_tunnel() {
    need!(tools());
    let (_segments, [a, b, c]) = Segments::new(true);
    let direct = |from: &NodeUnderTest, to: &NodeUnderTest| {
        route(from, to).contains(&format!("via {} dev eth0", to.host.address()))
    };
    let tunnelled =
        |from: &NodeUnderTest, to: &NodeUnderTest| route(from, to).contains("dev flannel.1");
    eventually("all routes are installed", || {
        let near = direct(&a, &b) && direct(&b, &a);
        near && tunnelled(&a, &c) && tunnelled(&c, &a) && tunnelled(&c, &b) && tunnelled(&b, &c)
    });
    eventually("all peers answer", || {
        a.reaches(&b) && c.reaches(&a) && c.reaches(&b)
    });
    assert_eq!(ways(&a, &b), PLAIN);
    assert_eq!(ways(&b, &a), PLAIN);
    assert_eq!(ways(&a, &c), TUNNELLED);
    assert_eq!(ways(&c, &b), TUNNELLED);
    let before = arrived(&b)[0];
    a.transfer(&b, 4 << 20);
    assert_eq!(arrived(&b)[0], before, "no packet in the tunnel");
    c.transfer(&a, 4 << 20);

    // The route to b changes: b leaves the link, and then returns.
    let far = format!("{}/32", b.host.address());
    let near = format!("{}/32", a.host.address());
    let via = ["via", Segments::router(), "dev", "eth0"];
    a.change(&[&["route", "add", &far], &via[..]].concat());
    b.change(&[&["route", "add", &near], &via[..]].concat());
    eventually("b is routed through the tunnel", || {
        tunnelled(&a, &b) && tunnelled(&b, &a)
    });
    eventually("b answers through the tunnel", || a.reaches(&b));
    assert_eq!(ways(&a, &b), TUNNELLED);
    a.change(&["route", "del", &far]);
    b.change(&["route", "del", &near]);
    eventually("b is routed directly again", || {
        direct(&a, &b) && direct(&b, &a)
    });
    assert_eq!(ways(&a, &b), PLAIN);
}

#[test]
fn without_direct_routing_every_peer_is_reached_through_the_tunnel() {
    need!(tools());
    let (segments, [a, b, c]) = Segments::new(false);
    assert!(segments.topology.router().is_some());
    eventually("all peers answer", || {
        a.reaches(&b) && c.reaches(&a) && c.reaches(&b)
    });
    for (from, to) in [(&a, &b), (&a, &c), (&c, &b)] {
        assert!(
            route(from, to).contains("dev flannel.1"),
            "{}",
            route(from, to)
        );
        assert_eq!(ways(from, to), TUNNELLED);
    }
}
