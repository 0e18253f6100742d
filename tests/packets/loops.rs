//! Configurations that would cause forwarding loops: a packet never causes more than one other,
//! and the daemon excludes such peers.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use ipnet::Ipv4Net;
use uvxlan::dataplane::Dataplane;
use uvxlan::dataplane::counters::{Counter, Totals};
use uvxlan::dataplane::ingress_policy::{Enforcement, IngressPolicy};
use uvxlan::testbed::{Container, Host, Topology};
use uvxlan::wire::MacAddr;

use crate::support::directory::DirectoryStore;
use crate::support::need;
use crate::support::nodes::{CONFIG, eventually, possible};
use crate::support::wire::{
    DEVICE, KERNEL_MAC, MTU, OUR_MAC, kernel_subnet, network, our_subnet, policed_end,
};

const PACKETS: u64 = 200;
const PAYLOAD: usize = 100;
/// Inner IP and UDP headers, and all outer headers.
const INNER: u64 = PAYLOAD as u64 + 28;
const OUTER: u64 = INNER + 50;

/// A packet loop that checks its peers, and a container behind it.
fn end(host: &Host, subnet: Ipv4Net, mac: MacAddr, peer: (Ipv4Net, &Host, MacAddr)) -> Dataplane {
    let policy = IngressPolicy::new(Enforcement::Enforce, network(), subnet);
    policed_end(host, subnet, mac, peer, policy)
}

/// Changes of a packet loop's counters.
struct Change {
    before: Totals,
    after: Totals,
}

impl Change {
    fn of(&self, counter: Counter) -> u64 {
        self.after.get(counter) - self.before.get(counter)
    }
}

/// Sends datagrams to an address behind the peer, once the path there works, and waits until all
/// have left the packet loop and any loop would have shown.
fn send(from: &Container, to: Ipv4Addr, dataplane: &Dataplane) -> Change {
    let open = || UdpSocket::bind((from.address(), 0)).unwrap();
    let socket = from.namespace().run(open).unwrap();
    let send = || socket.send_to(&[7; PAYLOAD], (to, 9)).unwrap();
    let sent = || dataplane.totals().get(Counter::Sent);
    eventually("packets reach the device", || {
        send();
        sent() > 0
    });
    let settle = || std::thread::sleep(Duration::from_millis(300));
    settle();
    let before = dataplane.totals();
    for _ in 0..PACKETS {
        send();
        // Slowly enough that no queue overflows.
        std::thread::sleep(Duration::from_millis(1));
    }
    eventually("all packets have left", || {
        sent() >= before.get(Counter::Sent) + PACKETS
    });
    settle();
    Change {
        before,
        after: dataplane.totals(),
    }
}

fn run(host: &Host, arguments: &[&str]) {
    let mut command = Command::new("ip");
    command.args(arguments);
    let output = host.namespace().command(command).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
}

/// Bytes that the kernel handed to the device.
fn bytes_into(host: &Host, device: &str) -> u64 {
    let mut command = Command::new("ip");
    command.args(["-s", "-j", "link", "show", device]);
    let output = host.namespace().command(command).output().unwrap();
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    found[0]["stats64"]["tx"]["bytes"].as_u64().unwrap()
}

#[test]
fn a_route_into_the_own_device_costs_each_packet_one_more_turn() {
    need!(possible(&["ip"]));
    let topology = Topology::two_hosts().unwrap();
    let (other, ours) = topology.pair().unwrap();
    let peer = (kernel_subnet(), other, KERNEL_MAC);
    let dataplane = end(ours, our_subnet(), OUR_MAC, peer);
    let container = ours.add_container(our_subnet(), u32::from(MTU)).unwrap();
    let route = format!("{}/32", other.address());
    run(ours, &["route", "add", &route, "dev", DEVICE]);
    let before = bytes_into(ours, DEVICE);
    let far = kernel_subnet().hosts().nth(1).unwrap();
    let change = send(&container, far, &dataplane);
    let totals = dataplane.totals();
    assert_eq!(change.of(Counter::Sent), PACKETS, "{totals}");
    let came_back = change.of(Counter::OutNoRoute);
    assert_eq!(came_back, PACKETS, "each once: {totals}");
    // IPv6 sends packets of its own on a new device; a kilobyte is more than enough for them.
    let bytes = bytes_into(ours, DEVICE) - before;
    let bound = totals.get(Counter::Sent) * (INNER + OUTER) + 1024;
    assert!(bytes <= bound, "{bytes} bytes");
}

#[test]
fn a_peer_at_the_own_address_gets_nothing_delivered() {
    need!(possible(&["ip"]));
    let topology = Topology::two_hosts().unwrap();
    let (_, ours) = topology.pair().unwrap();
    let container = ours.add_container(our_subnet(), u32::from(MTU)).unwrap();
    for mac in [KERNEL_MAC, OUR_MAC] {
        let peer = (kernel_subnet(), ours, mac);
        let dataplane = end(ours, our_subnet(), OUR_MAC, peer);
        let far = kernel_subnet().hosts().nth(1).unwrap();
        let change = send(&container, far, &dataplane);
        let totals = dataplane.totals();
        assert_eq!(change.of(Counter::Sent), PACKETS, "{totals}");
        assert_eq!(change.of(Counter::UdpRead), PACKETS, "{totals}");
        assert_eq!(totals.get(Counter::Delivered), 0, "{totals}");
    }
}

#[test]
fn two_hosts_that_name_each_other_for_a_subnet_do_not_loop_packets() {
    need!(possible(&["ip"]));
    let topology = Topology::two_hosts().unwrap();
    let (a, b) = topology.pair().unwrap();
    let lost: Ipv4Net = "10.3.77.0/24".parse().unwrap();
    let a_end = end(a, kernel_subnet(), KERNEL_MAC, (lost, b, OUR_MAC));
    let b_end = end(b, our_subnet(), OUR_MAC, (lost, a, KERNEL_MAC));
    let container = a.add_container(kernel_subnet(), u32::from(MTU)).unwrap();
    let change = send(&container, lost.hosts().next().unwrap(), &a_end);
    let (a_totals, b_totals) = (change.after.clone(), b_end.totals());
    assert_eq!(change.of(Counter::Sent), PACKETS, "{a_totals}");
    let sent = a_totals.get(Counter::Sent);
    assert_eq!(b_totals.get(Counter::UdpRead), sent, "{b_totals}");
    assert_eq!(b_totals.get(Counter::Sent), 0, "{b_totals}");
    assert_eq!(b_totals.get(Counter::Delivered), 0, "{b_totals}");
}

#[test]
fn the_daemon_excludes_looping_peers_and_readmits_them() {
    need!(possible(&["ip"]));
    let topology = Topology::two_hosts().unwrap();
    let (ours, _) = topology.pair().unwrap();
    let store = DirectoryStore::new(CONFIG);
    let write = |name: &str, public_ip: &str, mac: &str| {
        let value = format!(
            "{{\"PublicIP\":\"{public_ip}\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
             \"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}}}"
        );
        store.put(&format!("subnets/{name}"), &value);
    };
    // A second address of the host, and an ordinary peer.
    run(ours, &["addr", "add", "198.51.100.5/32", "dev", "lo"]);
    write("10.5.1.0-24", "198.51.100.5", "0e:00:00:00:00:01");
    write("10.5.2.0-24", "203.0.113.9", "0e:00:00:00:00:02");
    let node = store.start(ours, &[]);
    let routed = |subnet: &str| {
        node.output("ip", &["route"])
            .lines()
            .any(|line| line.starts_with(subnet) && line.contains("flannel.1"))
    };
    let told = |public_ip: &str| {
        let log = node.log();
        let of_peer = |line: &&str| line.contains("peer_loop\"") && line.contains(public_ip);
        log.lines().filter(of_peer).count()
    };
    eventually("the good peer has a route", || routed("10.5.2.0/24"));
    assert!(!routed("10.5.1.0/24"));
    assert_eq!(told("198.51.100.5"), 1, "{}", node.log());

    node.change(&["route", "add", "203.0.113.0/24", "dev", "flannel.1"]);
    eventually("the peer is excluded", || !routed("10.5.2.0/24"));
    write("10.5.3.0-24", "203.0.113.10", "0e:00:00:00:00:03");
    eventually("a new one is excluded at once", || {
        told("203.0.113.10") == 1
    });
    assert!(!routed("10.5.3.0/24"));

    // What counts is the route for packets from the tunnel's address.
    let (aside, source) = ("203.0.113.0/24", ours.address().to_string());
    node.change(&["route", "add", aside, "dev", "eth0", "table", "77"]);
    node.change(&["rule", "add", "from", &source, "to", aside, "lookup", "77"]);
    eventually("a rule routes out of the overlay", || routed("10.5.2.0/24"));
    node.change(&["rule", "del", "from", &source, "to", aside, "lookup", "77"]);
    eventually("the peers are excluded again", || {
        !routed("10.5.2.0/24") && !routed("10.5.3.0/24")
    });

    node.change(&["route", "del", aside, "dev", "flannel.1"]);
    node.change(&["addr", "del", "198.51.100.5/32", "dev", "lo"]);
    eventually("all of them are back", || {
        ["10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24"]
            .iter()
            .all(|subnet| routed(subnet))
    });
    assert_eq!(
        told("203.0.113.9"),
        2,
        "logged once each time:\n{}",
        node.log()
    );
    assert!(!node.log().contains("routes_repaired"), "{}", node.log());
}
