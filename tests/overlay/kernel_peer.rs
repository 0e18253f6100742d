//! Next to a flannel node, with the kernel's vxlan on the other host, known from its lease alone;
//! and in place of one, on a host where flannel ran before.

use std::net::Ipv4Addr;
use std::process::Command;

use ipnet::Ipv4Net;
use uvxlan::testbed::traffic::{PingRequest, TransferRequest, ping, tcp_transfer};
use uvxlan::testbed::{Container, Host, KernelVxlan, Topology, kernel_has_vxlan};
use uvxlan::wire::vxlan::DEFAULT_PORT;
use uvxlan::wire::{MacAddr, Vni};

use crate::support::directory::DirectoryStore;
use crate::support::need;
use crate::support::nodes::{self, NodeUnderTest, eventually, possible};

const CONFIG: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
const KERNEL_MAC: MacAddr = MacAddr([0x0e, 0x11, 0x22, 0x33, 0x44, 0x55]);

fn kernel_subnet() -> Ipv4Net {
    Ipv4Net::new_assert([10, 5, 200, 0].into(), 24)
}

/// The value of a lease as each version of flannel writes it.
fn newest(host: &Host) -> String {
    format!(
        "{{\"PublicIP\":\"{}\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
         \"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"{KERNEL_MAC}\"}}}}",
        host.address()
    )
}

fn v0_11(host: &Host) -> String {
    format!(
        "{{\"PublicIP\":\"{}\",\"BackendType\":\"vxlan\",\"BackendData\":{{\"VtepMAC\":\"{KERNEL_MAC}\"}}}}",
        host.address()
    )
}

fn checks() -> Result<(), String> {
    possible(&["ip"])?;
    kernel_has_vxlan()
}

/// Key of the lease of flannel's host.
const KERNEL_LEASE: &str = "subnets/10.5.200.0-24";

/// flannel's device with one peer; it stays as long as the host.
fn flannel_device(host: &Host, subnet: Ipv4Net, public_ip: Ipv4Addr, mac: MacAddr) {
    let device = KernelVxlan::start(
        host,
        Vni::DEFAULT,
        DEFAULT_PORT,
        kernel_subnet(),
        KERNEL_MAC,
    )
    .unwrap();
    device.add_peer(subnet, public_ip, mac).unwrap();
}

/// Our daemon in place of flannel on its host, not started yet.
fn successor(store: &DirectoryStore, host: &Host) -> NodeUnderTest {
    NodeUnderTest {
        program: nodes::PROGRAM.into(),
        host: host.clone(),
        folder: store.folder.path().join("ours"),
        flags: vec![store.flag()],
        daemon: None,
        env: None,
        container: Some(host.add_container(kernel_subnet(), 1450).unwrap()),
    }
}

/// The host's subnet and MAC in the store.
fn own_lease(store: &DirectoryStore, host: &Host) -> (Ipv4Net, MacAddr) {
    for entry in std::fs::read_dir(store.path().join("subnets")).unwrap() {
        let entry = entry.unwrap();
        let value = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let Ok(lease) = serde_json::from_str::<serde_json::Value>(&value) else {
            continue;
        };
        if lease["PublicIP"] == host.address().to_string() {
            let name = entry.file_name().into_string().unwrap().replace('-', "/");
            let mac = lease["BackendData"]["VtepMAC"].as_str().unwrap();
            return (name.parse().unwrap(), mac.parse().unwrap());
        }
    }
    panic!("no lease of {}", host.address());
}

fn assert_traffic(a: &Container, b: &Container) {
    for (from, to) in [(a, b), (b, a)] {
        let request = PingRequest {
            count: 10,
            ..PingRequest::new(to.address())
        };
        let report = ping(from.namespace(), request).unwrap();
        assert!(report.is_complete(), "{report:?}");
        assert!(report.ttls.iter().all(|ttl| *ttl == 62), "{report:?}");
        let request = TransferRequest::new(to.address(), 8 << 20);
        let report = tcp_transfer(from.namespace(), to.namespace(), request, |_| ()).unwrap();
        assert!(report.is_intact(), "{report:?}");
    }
}

fn reached(from: &Container, to: &Container) -> bool {
    let request = PingRequest {
        count: 1,
        ..PingRequest::new(to.address())
    };
    ping(from.namespace(), request).is_ok_and(|report| report.is_complete())
}

#[test]
fn a_flannel_node_is_known_from_its_lease_alone() {
    need!(checks());
    for form in [newest, v0_11] {
        let topology = Topology::two_hosts().unwrap();
        let (ours, kernel) = topology.pair().unwrap();
        let store = DirectoryStore::new(CONFIG);
        store.put(KERNEL_LEASE, &form(kernel));

        let node = store.start(ours, &[]);
        let subnet = node.env.unwrap().subnet;
        let (leased, mac) = own_lease(&store, ours);
        assert_eq!(leased, subnet);

        // What flannel does with our lease.
        flannel_device(kernel, subnet, ours.address(), mac);
        let far = kernel.add_container(kernel_subnet(), 1450).unwrap();
        eventually("the containers reach each other", || {
            reached(node.container(), &far)
        });
        assert_traffic(node.container(), &far);
        assert_eq!(
            std::fs::read_to_string(store.path().join(KERNEL_LEASE)).unwrap(),
            form(kernel),
            "a foreign record is left alone"
        );
    }
}

#[test]
fn it_takes_over_where_flannel_ran() {
    need!(checks());
    let topology = Topology::two_hosts().unwrap();
    let (before, other) = topology.pair().unwrap();
    let store = DirectoryStore::new(CONFIG);
    store.put(KERNEL_LEASE, &newest(before));
    let peer = store.start(other, &[]);
    let (peer_subnet, peer_mac) = own_lease(&store, other);

    // flannel on the first host, with its device and a container.
    flannel_device(before, peer_subnet, other.address(), peer_mac);
    let mut node = successor(&store, before);
    eventually("flannel works", || node.reaches(&peer));
    node.start_daemon();
    assert_eq!(
        node.env.unwrap().subnet,
        kernel_subnet(),
        "the subnet stays"
    );
    assert_eq!(
        own_lease(&store, before),
        (kernel_subnet(), KERNEL_MAC),
        "the MAC stays"
    );
    let link = node.output("ip", &["-d", "link", "show", "flannel.1"]);
    assert!(
        link.contains("tun ") && !link.contains("vxlan id"),
        "{link}"
    );
    eventually("the containers reach each other", || node.reaches(&peer));
    assert_traffic(node.container(), peer.container());

    // And back: nothing of ours keeps flannel from working.
    node.stop_daemon();
    let mut command = Command::new("ip");
    command.args(["link", "show", "flannel.1"]);
    let gone = before.namespace().command(command).output().unwrap();
    assert!(!gone.status.success(), "the device is gone");
    flannel_device(before, peer_subnet, other.address(), peer_mac);
    eventually("flannel works again", || peer.reaches(&node));
}

/// The lease is gone (expired, or another datastore), but flannel's device and subnet file are
/// left: containers have addresses of that subnet, so it must be kept.
#[test]
fn the_subnet_file_of_flannel_keeps_the_subnet_without_a_lease() {
    need!(checks());
    let flannels = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.200.1/24\n\
                    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    // What mk-docker-opts.sh makes of it if it writes to the file that it reads.
    let overwritten = "DOCKER_OPT_BIP=\"--bip=10.5.200.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n\
                       DOCKER_OPT_MTU=\"--mtu=1450\"\n";
    for subnet_file in [flannels, overwritten] {
        let topology = Topology::two_hosts().unwrap();
        let (before, other) = topology.pair().unwrap();
        let store = DirectoryStore::new(CONFIG);
        let peer = store.start(other, &[]);
        let (peer_subnet, peer_mac) = own_lease(&store, other);

        flannel_device(before, peer_subnet, other.address(), peer_mac);
        let mut node = successor(&store, before);
        std::fs::create_dir(&node.folder).unwrap();
        std::fs::write(node.folder.join("subnet.env"), subnet_file).unwrap();
        node.start_daemon();
        assert_eq!(own_lease(&store, before), (kernel_subnet(), KERNEL_MAC));
        // The file is complete again, in flannel's form.
        let rewritten = std::fs::read_to_string(node.folder.join("subnet.env")).unwrap();
        assert_eq!(
            rewritten,
            flannels.replace("IPMASQ=true", "IPMASQ=false"),
            "--ip-masq was not set"
        );
        // The device is like flannel's: address, MTU, and the route to the peer.
        let address = node.output("ip", &["-o", "-4", "addr", "show", "flannel.1"]);
        assert!(address.contains("10.5.200.0/32"), "{address}");
        let link = node.output("ip", &["-d", "link", "show", "flannel.1"]);
        assert!(link.contains("mtu 1450") && link.contains("tun "), "{link}");
        let routes = node.output("ip", &["route", "show", &peer_subnet.to_string()]);
        assert_eq!(routes.matches("dev flannel.1").count(), 1, "{routes}");
        eventually("the containers reach each other", || node.reaches(&peer));
        assert_traffic(node.container(), peer.container());
    }
}
