//! Effects of the rules on traffic.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use uvxlan::testbed::{Container, Host, Node, Topology};

use super::bench::CONFIG;

use crate::support::need;
use crate::support::nodes::{NodeUnderTest, eventually, possible};

fn store(folder: &std::path::Path, config: &str) -> String {
    let store = folder.join("store");
    std::fs::create_dir_all(&store).unwrap();
    std::fs::write(store.join("config"), config).unwrap();
    format!("--store=dir:{}", store.display())
}

fn shell(host: &Host, line: &str) {
    let mut command = Command::new("sh");
    command.args(["-c", line]);
    let output = host.namespace().command(command).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
}

/// The source address of a datagram from the container, as the receiver sees it.
fn source_seen(container: &Container, to: &Node, address: Ipv4Addr) -> Ipv4Addr {
    let receiver = to
        .namespace()
        .run(|| UdpSocket::bind((address, 0)).unwrap())
        .unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let destination = receiver.local_addr().unwrap();
    container
        .namespace()
        .run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.send_to(b"who am I", destination).unwrap();
        })
        .unwrap();
    match receiver.recv_from(&mut [0; 64]).unwrap().1.ip() {
        std::net::IpAddr::V4(address) => address,
        other => panic!("{other}"),
    }
}

#[test]
fn only_packets_that_leave_the_overlay_are_masqueraded() {
    need!(possible(&["iptables", "nft"]));
    for config in [
        CONFIG.to_owned(),
        CONFIG.replacen('{', r#"{"EnableNFTables": true, "#, 1),
    ] {
        let topology = Topology::with_hosts(3).unwrap();
        let [first, second, outside] = topology.hosts() else {
            panic!("three hosts were asked for")
        };
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), &config);
        let flags = [store, "--ip-masq".into()];
        for host in [first, second] {
            // As Docker sets it.
            shell(host, "sysctl -qw net.ipv4.ip_forward=0");
        }
        let [a, b] = [first, second].map(|host| NodeUnderTest::start(host, folder.path(), &flags));
        eventually("the containers reach each other", || a.reaches(&b));
        let container = a.container();
        assert_eq!(
            source_seen(container, outside.node(), outside.address()),
            first.address(),
            "masqueraded"
        );
        assert_eq!(
            source_seen(container, b.container().node(), b.container().address()),
            container.address(),
            "not translated"
        );
    }
}

#[test]
fn a_policy_that_drops_does_not_stop_the_overlay() {
    need!(possible(&["iptables"]));
    let topology = Topology::two_hosts().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), CONFIG);
    for host in topology.hosts() {
        shell(host, "iptables -P FORWARD DROP");
    }
    let flags = [store];
    let [a, b] = [0, 1].map(|n| NodeUnderTest::start(&topology.hosts()[n], folder.path(), &flags));
    eventually("the containers reach each other", || a.reaches(&b));
}
