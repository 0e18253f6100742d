//! A flannel peer with the kernel's vxlan: it is probed by what its kernel answers anyway, and
//! its silence is noticed.

use std::process::Command;

use ipnet::Ipv4Net;
use serde_json::Value;
use uvxlan::testbed::{Host, KernelVxlan, Topology, kernel_has_vxlan};
use uvxlan::wire::vxlan::DEFAULT_PORT;
use uvxlan::wire::{MacAddr, Vni};

use super::{examine, until_healthy};

use crate::support::directory::DirectoryStore;
use crate::support::need;
use crate::support::nodes::{CONFIG, NodeUnderTest, eventually, possible};

const MAC: MacAddr = MacAddr([0x0e, 0x11, 0x22, 0x33, 0x44, 0x55]);

fn peer_of(node: &NodeUnderTest) -> Value {
    node.status()["peers"][0].clone()
}

fn iptables(host: &Host, change: &str) {
    let mut command = Command::new("iptables");
    command.args([
        change, "INPUT", "-p", "udp", "--dport", "8472", "-j", "DROP",
    ]);
    let output = host.namespace().command(command).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_peer_of_the_kernel_has_a_round_trip_and_its_silence_is_named() {
    need!(possible(&["ip", "iptables"]));
    need!(kernel_has_vxlan());
    let topology = Topology::two_hosts().unwrap();
    let (one, two) = topology.pair().unwrap();
    let store = DirectoryStore::new(CONFIG);
    let subnet = Ipv4Net::new_assert([10, 5, 200, 0].into(), 24);
    let lease = format!(
        r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{MAC}"}}}}"#,
        two.address()
    );
    store.put("subnets/10.5.200.0-24", &lease);
    let node = store.start(one, &["--probe-interval=1"]);
    let own = node.env.unwrap().subnet;
    let ours: Value = serde_json::from_slice(&std::fs::read(store.lease(&node)).unwrap()).unwrap();
    let mac = ours["BackendData"]["VtepMAC"].as_str().unwrap();
    let flannel = KernelVxlan::start(two, Vni::DEFAULT, DEFAULT_PORT, subnet, MAC).unwrap();
    flannel
        .add_peer(own, one.address(), mac.parse().unwrap())
        .unwrap();

    eventually("it answers probes, small and large", || {
        let peer = peer_of(&node);
        peer["state"] == "ok" && peer["rtt_us"].is_u64() && peer["path_mtu"] == 1450
    });
    let look = || examine(&node, &[&store.flag()]);
    until_healthy("a node beside the kernel's vxlan", look);
    iptables(two, "-I");
    eventually("its silence is noticed", || {
        peer_of(&node)["state"] == "silent"
    });
    let found = look();
    iptables(two, "-D");
    found.expect("peers", "warning", &format!("silent: {subnet}"));
    eventually("it is reachable again", || peer_of(&node)["state"] == "ok");
    until_healthy("after it is back", look);
}
