//! How nodes probe each other: inside the tunnel if the peer supports it, by ICMP otherwise.

mod by_hand;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use uvxlan::testbed::{Host, KernelVxlan, Topology, kernel_has_vxlan};
use uvxlan::wire::vxlan::DEFAULT_PORT;
use uvxlan::wire::{MacAddr, Vni};

use crate::support::directory::DirectoryStore;
use crate::support::need;
use crate::support::nodes::{self, NodeUnderTest, eventually, possible};

const KERNEL_MAC: MacAddr = MacAddr([0x0e, 0x11, 0x22, 0x33, 0x44, 0x55]);

/// An nftables rule that counts frames with the probes' ethertype after UDP (8 bytes), VXLAN (8)
/// and the two MACs (12): 224 bits from the UDP header on.
const COUNT_PROBES: &str = "nft add table ip t; \
    nft add chain ip t c '{ type filter hook input priority -300; }'; \
    nft add rule ip t c udp dport 8472 @th,224,16 0x88b5 counter";

/// Null if there is no reply or no peer yet.
fn peer(node: &NodeUnderTest) -> Value {
    node.status()["peers"][0].clone()
}

/// The peer, which must exist.
fn known_peer(node: &NodeUnderTest) -> Value {
    let peer = peer(node);
    assert!(peer["public_ip"].is_string(), "the peer is known: {peer}");
    peer
}

fn counter(node: &NodeUnderTest, name: &str) -> u64 {
    let status = node.status();
    let counters = status["counters"].as_array().unwrap();
    let found = counters.iter().find(|counter| counter["name"] == name);
    found.unwrap()["value"].as_u64().unwrap()
}

fn shell(host: &Host, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", script]);
    let output = host.namespace().command(command).output().unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Frames with the probes' ethertype that arrived at this host since the rule was added.
fn probes_on_the_wire(host: &Host) -> u64 {
    let rules = shell(host, "nft list table ip t");
    let count = rules.split("counter packets ").nth(1).unwrap();
    count.split(' ').next().unwrap().parse().unwrap()
}

/// Overwritten, as flannel does.
fn write_flannels_lease(path: &Path, host: &Host) {
    let value = format!(
        "{{\"PublicIP\":\"{}\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
         \"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"{KERNEL_MAC}\"}}}}",
        host.address()
    );
    let new = path.with_file_name(".flannels");
    std::fs::write(&new, value).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// The search for the path MTU may take a minute.
fn within_minutes(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !check() {
        assert!(Instant::now() < deadline, "not within two minutes: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn nodes_of_ours_probe_each_other_inside_of_the_tunnel() {
    need!(possible(&["ip", "nft"]));
    let topology = Topology::two_hosts().unwrap();
    let (one, two) = topology.pair().unwrap();
    shell(two, COUNT_PROBES);
    let store = DirectoryStore::new(nodes::CONFIG);
    let (a, b) = (
        store.start(one, &["--probe-interval=1"]),
        store.start(two, &["--probe-interval=1"]),
    );
    for node in [&a, &b] {
        eventually("everything is measured", || {
            let peer = peer(node);
            peer["state"] == "ok"
                && peer["rtt_us"].as_u64().is_some()
                && peer["path_mtu"] == 1450
                && peer["loss_out_percent"] == 0
                && peer["loss_in_percent"] == 0
        });
        let peer = peer(node);
        assert_eq!(peer["probe"], "in-band");
        assert!(peer["seen_seconds_ago"].as_u64().unwrap() < 5, "{peer}");
        // No container has sent anything, and probes do not count as traffic.
        assert_eq!(
            (&peer["in_packets"], &peer["out_packets"]),
            (&0.into(), &0.into())
        );
        for name in ["sent", "delivered"] {
            assert_eq!(counter(node, name), 0, "{name}");
        }
        for name in ["probes_in", "probes_sent", "probes_answered"] {
            assert!(counter(node, name) > 0, "{name}");
        }
        for name in ["probe_replays", "in_probe_flood", "in_probe_malformed"] {
            assert_eq!(counter(node, name), 0, "{name}");
        }
    }
    assert!(probes_on_the_wire(two) > 0, "the rule counts frames");
}

/// Two nodes that probe each other, once the loss is zero.
fn without_loss(store: &DirectoryStore, topology: &Topology) -> [NodeUnderTest; 2] {
    let (one, two) = topology.pair().unwrap();
    let nodes = [one, two].map(|host| store.start(host, &["--probe-interval=1"]));
    within_minutes("nothing is lost", || {
        nodes.iter().all(|node| peer(node)["loss_out_percent"] == 0)
    });
    nodes
}

fn percent(node: &NodeUnderTest, which: &str) -> Option<u64> {
    peer(node)[which].as_u64()
}

#[test]
fn loss_is_measured_by_direction() {
    need!(possible(&["ip", "iptables"]));
    let (topology, store) = (
        Topology::two_hosts().unwrap(),
        DirectoryStore::new(nodes::CONFIG),
    );
    let [a, b] = without_loss(&store, &topology);
    // Half of one's packets do not reach the other.
    let half = "iptables -I INPUT -p udp --dport 8472 -m statistic --mode random --probability 0.5 -j DROP";
    shell(&b.host, half);
    within_minutes("both say on which way", || {
        percent(&a, "loss_out_percent") > Some(20)
            && percent(&a, "loss_in_percent") == Some(0)
            && percent(&b, "loss_in_percent") > Some(20)
            && percent(&b, "loss_out_percent") == Some(0)
    });
    shell(&b.host, "iptables -F INPUT");
    within_minutes("nothing is lost any more", || {
        percent(&a, "loss_percent") == Some(0) && percent(&b, "loss_percent") == Some(0)
    });
}

#[test]
fn only_the_side_that_still_receives_reports_one_way_loss() {
    need!(possible(&["ip", "iptables"]));
    let (topology, store) = (
        Topology::two_hosts().unwrap(),
        DirectoryStore::new(nodes::CONFIG),
    );
    let [a, b] = without_loss(&store, &topology);
    // Nothing reaches it any more: the side that still receives can tell.
    shell(&b.host, "iptables -I INPUT -p udp --dport 8472 -j DROP");
    within_minutes("who is heard no more knows", || {
        percent(&a, "loss_out_percent") == Some(100) && peer(&a)["state"] == "one-way"
    });
    assert_eq!(percent(&a, "loss_percent"), Some(100));
    // The other side receives nothing, and cannot tell.
    let heard_nothing = known_peer(&b);
    assert!(
        heard_nothing["loss_out_percent"].is_null(),
        "{heard_nothing}"
    );
    shell(&b.host, "iptables -F INPUT");
    within_minutes("nothing is lost any more", || {
        percent(&a, "loss_percent") == Some(0) && percent(&b, "loss_percent") == Some(0)
    });
}

#[test]
fn a_path_that_narrows_is_found_by_halving() {
    need!(possible(&["ip", "iptables"]));
    let topology = Topology::two_hosts().unwrap();
    let (one, two) = topology.pair().unwrap();
    let store = DirectoryStore::new(nodes::CONFIG);
    let (a, _b) = (
        store.start(one, &["--probe-interval=1"]),
        store.start(two, &["--probe-interval=1"]),
    );
    eventually("large packets pass", || peer(&a)["path_mtu"] == 1450);
    // An inner packet of 1,250 bytes becomes one of 1,300.
    shell(
        two,
        "iptables -I INPUT -p udp --dport 8472 -m length --length 1301:65535 -j DROP",
    );
    within_minutes("the longest is known", || {
        let found = peer(&a)["path_mtu"].as_u64();
        found.is_some_and(|found| (1242..=1250).contains(&found))
    });
    let peer = peer(&a);
    assert_eq!(
        (&peer["state"], &peer["loss_percent"]),
        (&"ok".into(), &0.into())
    );
}

#[test]
fn a_kernel_peer_never_gets_a_probe_of_ours() {
    need!(possible(&["ip", "nft"]));
    need!(kernel_has_vxlan());
    let topology = Topology::two_hosts().unwrap();
    let (ours, kernel) = topology.pair().unwrap();
    let store = DirectoryStore::new(nodes::CONFIG);
    let subnet = ipnet::Ipv4Net::new_assert([10, 5, 200, 0].into(), 24);
    write_flannels_lease(&store.path().join("subnets/10.5.200.0-24"), kernel);
    shell(kernel, COUNT_PROBES);
    let vxlan = KernelVxlan::start(kernel, Vni::DEFAULT, DEFAULT_PORT, subnet, KERNEL_MAC);
    let vxlan = vxlan.unwrap();
    let node = store.start(ours, &["--probe-interval=1"]);
    let mac = node.status()["node"]["vtep_mac"]
        .as_str()
        .unwrap()
        .to_owned();
    let own = node.env.unwrap().subnet;
    vxlan
        .add_peer(own, ours.address(), mac.parse().unwrap())
        .unwrap();
    eventually("it is probed by ICMP", || {
        let peer = peer(&node);
        peer["probe"] == "icmp" && peer["path_mtu"] == 1450 && peer["state"] == "ok"
    });
    assert!(
        peer(&node)["loss_out_percent"]
            .as_u64()
            .is_none_or(|lost| lost == 0)
    );
    assert_eq!(probes_on_the_wire(kernel), 0);
    assert_eq!(counter(&node, "probes_sent"), 0);
}

#[test]
fn probes_end_when_flannel_takes_over_a_node() {
    need!(possible(&["ip", "nft"]));
    need!(kernel_has_vxlan());
    let topology = Topology::two_hosts().unwrap();
    let (one, two) = topology.pair().unwrap();
    let store = DirectoryStore::new(nodes::CONFIG);
    let a = store.start(one, &["--probe-interval=1"]);
    let mut b = store.start(two, &["--probe-interval=1"]);
    eventually("a probe was answered", || {
        let peer = peer(&a);
        peer["probe"] == "in-band" && peer["rtt_us"].as_u64().is_some()
    });
    let mac = a.status()["node"]["vtep_mac"].as_str().unwrap().to_owned();
    let (subnet, peers) = (b.env.unwrap().subnet, a.env.unwrap().subnet);
    b.stop_daemon();
    // flannel: the lease, then the device.
    write_flannels_lease(&store.lease(&b), two);
    eventually("the lease is read", || peer(&a)["probe"] == "icmp");
    shell(two, COUNT_PROBES);
    let vxlan = KernelVxlan::start(two, Vni::DEFAULT, DEFAULT_PORT, subnet, KERNEL_MAC).unwrap();
    vxlan
        .add_peer(peers, one.address(), mac.parse().unwrap())
        .unwrap();
    let before = counter(&a, "probes_sent");
    within_minutes("it answers ICMP", || {
        let peer = peer(&a);
        peer["loss_percent"] == 0 && peer["path_mtu"] == 1450
    });
    assert_eq!(probes_on_the_wire(two), 0);
    assert_eq!(counter(&a, "probes_sent"), before);
}

#[test]
fn without_probes_nothing_is_promised_asked_or_answered() {
    need!(possible(&["ip", "nft"]));
    let topology = Topology::two_hosts().unwrap();
    let (one, two) = topology.pair().unwrap();
    for host in [one, two] {
        shell(host, COUNT_PROBES);
    }
    let store = DirectoryStore::new(nodes::CONFIG);
    let (a, b) = (
        store.start(one, &["--probe-interval=0"]),
        store.start(two, &["--probe-interval=1"]),
    );
    let lease = |node| std::fs::read_to_string(store.lease(node)).unwrap();
    assert!(!lease(&a).contains("Probe"), "{}", lease(&a));
    assert!(lease(&b).contains(",\"Probe\":1}"), "{}", lease(&b));
    eventually("the other probes by ICMP", || {
        let peer = peer(&b);
        peer["probe"] == "icmp" && peer["rtt_us"].as_u64().is_some()
    });
    let none = known_peer(&a);
    assert!(
        none["probe"].is_null() && none["rtt_us"].is_null(),
        "{none}"
    );
    for host in [one, two] {
        assert_eq!(probes_on_the_wire(host), 0);
    }
}

/// Thousands of peers that do not exist: at any interval the host sends at its rate limit, and
/// every peer has its turn.
#[test]
fn thousands_of_peers_are_probed_at_a_bounded_rate() {
    need!(possible(&["ip"]));
    const PEERS: u64 = 2000;
    const A_SECOND: f64 = 500.0;
    let topology = Topology::two_hosts().unwrap();
    let (one, two) = topology.pair().unwrap();
    // They are all behind the other host, which knows none of them.
    let away = format!("ip route add 172.16.0.0/12 via {}", two.address());
    shell(one, &away);
    let store = DirectoryStore::new(nodes::CONFIG);
    let config = r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}"#;
    std::fs::write(store.path().join("config"), config).unwrap();
    for number in 0..PEERS {
        let (high, low) = (number / 250, number % 250 + 1);
        let value = format!(
            "{{\"PublicIP\":\"172.16.{high}.{low}\",\"BackendType\":\"vxlan\",\
             \"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:{high:02x}:{low:02x}\"}},\"Probe\":1}}"
        );
        let name = format!("10.{}.{low}.0-24", high + 1);
        std::fs::write(store.path().join("subnets").join(name), value).unwrap();
    }
    let node = store.start(one, &["--probe-interval=1"]);
    let (begin, before) = (Instant::now(), counter(&node, "probes_sent"));
    within_minutes("everybody was asked", || {
        // A status of so many peers takes time, too.
        std::thread::sleep(Duration::from_secs(2));
        let asked = counter(&node, "probes_sent") - before;
        let seconds = begin.elapsed().as_secs_f64();
        assert!(
            asked as f64 <= (seconds + 0.5) * A_SECOND,
            "{asked} in {seconds} s"
        );
        asked > 2 * PEERS
    });
    let peers = node.status()["peers"].as_array().unwrap().clone();
    assert_eq!(peers.len() as u64, PEERS);
    let asked = peers.iter().filter(|peer| !peer["loss_percent"].is_null());
    assert!(asked.count() as u64 > PEERS / 2);
}

#[test]
fn probes_follow_an_address_that_changes() {
    need!(possible(&["ip"]));
    let topology = Topology::two_hosts().unwrap();
    let (one, two) = topology.pair().unwrap();
    let store = DirectoryStore::new(nodes::CONFIG);
    let (a, b) = (
        store.start(one, &["--probe-interval=1"]),
        store.start(two, &["--probe-interval=1"]),
    );
    let known = |node: &NodeUnderTest| {
        let peer = peer(node);
        peer["probe"] == "in-band" && peer["path_mtu"] == 1450 && peer["loss_percent"] == 0
    };
    within_minutes("both are known", || known(&a) && known(&b));
    let old = two.address();
    let [first, second, third, _] = old.octets();
    let new = format!("{first}.{second}.{third}.77");
    shell(
        two,
        &format!(
            "ip address flush dev eth0; ip address add {new}/24 dev eth0; \
             ip route replace default dev eth0"
        ),
    );
    within_minutes("both are known again", || {
        peer(&a)["public_ip"] == new && known(&a) && known(&b)
    });
    let before = counter(&b, "probes_answered");
    eventually("it answers from its new address", || {
        counter(&b, "probes_answered") > before + 2
    });
}

/// If containers' packets bypass the tunnel, a probe inside it would prove nothing.
#[test]
fn peers_reached_without_the_tunnel_are_probed_by_icmp() {
    need!(possible(&["ip", "nft"]));
    let topology = Topology::two_hosts().unwrap();
    let (one, two) = topology.pair().unwrap();
    shell(two, COUNT_PROBES);
    let store = DirectoryStore::new(nodes::CONFIG);
    let config =
        r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;
    std::fs::write(store.path().join("config"), config).unwrap();
    let (a, _b) = (
        store.start(one, &["--probe-interval=1"]),
        store.start(two, &["--probe-interval=1"]),
    );
    eventually("it answers", || {
        let peer = peer(&a);
        peer["way"] == "direct" && peer["probe"] == "icmp" && peer["state"] == "ok"
    });
    assert_eq!(probes_on_the_wire(two), 0);
}
