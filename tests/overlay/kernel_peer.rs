//! Next to a flannel node, with the kernel's vxlan on the other host, known from its lease alone;
//! and in place of one, on a host where flannel ran before.

use std::path::Path;
use std::process::Command;

use ipnet::Ipv4Net;
use uvxlan::testbed::traffic::{PingRequest, TransferRequest, ping, tcp_transfer};
use uvxlan::testbed::{Container, Host, KernelVxlan, Topology, kernel_has_vxlan};
use uvxlan::wire::vxlan::DEFAULT_PORT;
use uvxlan::wire::{MacAddr, Vni};

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

fn write_lease(store: &Path, subnet: Ipv4Net, value: &str) {
    let name = format!("{}-{}", subnet.network(), subnet.prefix_len());
    std::fs::create_dir_all(store.join("subnets")).unwrap();
    std::fs::write(store.join("subnets").join(name), value).unwrap();
}

/// The host's subnet and MAC in the store.
fn own_lease(store: &Path, host: &Host) -> (Ipv4Net, MacAddr) {
    for entry in std::fs::read_dir(store.join("subnets")).unwrap() {
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
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        std::fs::create_dir(&store).unwrap();
        std::fs::write(store.join("config"), CONFIG).unwrap();
        write_lease(&store, kernel_subnet(), &form(kernel));

        let flags = [format!("--store=dir:{}", store.display())];
        let node = NodeUnderTest::start(ours, folder.path(), &flags);
        let subnet = node.env.unwrap().subnet;
        let (leased, mac) = own_lease(&store, ours);
        assert_eq!(leased, subnet);

        // What flannel does with our lease.
        let vxlan = KernelVxlan::start(
            kernel,
            Vni::DEFAULT,
            DEFAULT_PORT,
            kernel_subnet(),
            KERNEL_MAC,
        )
        .unwrap();
        vxlan.add_peer(subnet, ours.address(), mac).unwrap();
        let far = kernel.add_container(kernel_subnet(), 1450).unwrap();
        eventually("the containers reach each other", || {
            reached(node.container(), &far)
        });
        assert_traffic(node.container(), &far);
        assert_eq!(
            std::fs::read_to_string(store.join("subnets/10.5.200.0-24")).unwrap(),
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
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    std::fs::create_dir(&store).unwrap();
    std::fs::write(store.join("config"), CONFIG).unwrap();
    write_lease(&store, kernel_subnet(), &newest(before));
    let flags = [format!("--store=dir:{}", store.display())];
    let peer = NodeUnderTest::start(other, folder.path(), &flags);
    let (peer_subnet, peer_mac) = own_lease(&store, other);

    // flannel on the first host, with its device and a container.
    let flannel = KernelVxlan::start(
        before,
        Vni::DEFAULT,
        DEFAULT_PORT,
        kernel_subnet(),
        KERNEL_MAC,
    )
    .unwrap();
    flannel
        .add_peer(peer_subnet, other.address(), peer_mac)
        .unwrap();
    let container = before.add_container(kernel_subnet(), 1450).unwrap();
    eventually("flannel works", || reached(&container, peer.container()));

    let mut node = NodeUnderTest {
        program: nodes::PROGRAM.into(),
        host: before.clone(),
        folder: folder.path().join("ours"),
        flags: flags.to_vec(),
        daemon: None,
        env: None,
        container: Some(container),
    };
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
    let flannel = KernelVxlan::start(
        before,
        Vni::DEFAULT,
        DEFAULT_PORT,
        kernel_subnet(),
        KERNEL_MAC,
    )
    .unwrap();
    flannel
        .add_peer(peer_subnet, other.address(), peer_mac)
        .unwrap();
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
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        std::fs::create_dir(&store).unwrap();
        std::fs::write(store.join("config"), CONFIG).unwrap();
        let flags = [format!("--store=dir:{}", store.display())];
        let peer = NodeUnderTest::start(other, folder.path(), &flags);
        let (peer_subnet, peer_mac) = own_lease(&store, other);

        let flannel = KernelVxlan::start(
            before,
            Vni::DEFAULT,
            DEFAULT_PORT,
            kernel_subnet(),
            KERNEL_MAC,
        )
        .unwrap();
        flannel
            .add_peer(peer_subnet, other.address(), peer_mac)
            .unwrap();
        let mut node = NodeUnderTest {
            program: nodes::PROGRAM.into(),
            host: before.clone(),
            folder: folder.path().join("ours"),
            flags: flags.to_vec(),
            daemon: None,
            env: None,
            container: Some(before.add_container(kernel_subnet(), 1450).unwrap()),
        };
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
