//! The testbed itself must carry traffic before it can prove anything.
//!
//! All traffic stays in network namespaces that end with the test.

use std::time::Duration;

use ipnet::Ipv4Net;
use uvxlan::testbed::traffic::{
    PingPongRequest, PingRequest, TransferRequest, ping, tcp_transfer, udp_echo, udp_ping_pong,
};
use uvxlan::testbed::{
    Container, Host, KernelVxlan, TestbedError, Topology, available, kernel_has_vxlan,
};
use uvxlan::wire::{MacAddr, Vni};

use crate::support::need;

const MTU: u32 = 1450;
const PORT: u16 = 8472;

fn subnet(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn mac(last: u8) -> MacAddr {
    MacAddr([0x0e, 0, 0, 0, 0, last])
}

/// Two hosts with one container each, joined by the kernel's vxlan as flannel sets it up.
fn kernel_overlay(topology: &Topology) -> (Container, Container) {
    let (a, b) = topology.pair().unwrap();
    let (subnet_a, subnet_b) = (subnet("10.3.5.0/24"), subnet("10.3.6.0/24"));
    let start = |host: &Host, subnet, mac| {
        KernelVxlan::start(host, Vni::DEFAULT, PORT, subnet, mac).unwrap()
    };
    let vxlan_a = start(a, subnet_a, mac(1));
    let vxlan_b = start(b, subnet_b, mac(2));
    vxlan_a
        .add_peer(subnet_b, b.address(), vxlan_b.mac())
        .unwrap();
    vxlan_b
        .add_peer(subnet_a, a.address(), vxlan_a.mac())
        .unwrap();
    let in_a = a.add_container(subnet_a, MTU).unwrap();
    let in_b = b.add_container(subnet_b, MTU).unwrap();
    (in_a, in_b)
}

#[test]
fn containers_reach_each_other_over_kernel_vxlan() {
    need!(available());
    need!(kernel_has_vxlan());
    let topology = Topology::two_hosts().unwrap();
    let (a, b) = kernel_overlay(&topology);

    for (from, to) in [(&a, &b), (&b, &a)] {
        for payload_len in [0, 56, 1422, 4000] {
            let request = PingRequest {
                payload_len,
                ..PingRequest::new(to.address())
            };
            let report = ping(from.namespace(), request).unwrap();
            assert!(report.is_complete(), "{payload_len} bytes: {report:?}");
            assert_eq!(report.ttls, [62, 62, 62], "two routers on the path");
        }
    }
    let transfer = TransferRequest::new(b.address(), 8 << 20);
    let mut seen = 0;
    let report = tcp_transfer(a.namespace(), b.namespace(), transfer, |bytes| seen = bytes);
    let report = report.unwrap();
    assert_eq!((report.bytes, seen), (8 << 20, 8 << 20));
    assert!(report.is_intact(), "{report:?}");
}

#[test]
fn nothing_passes_between_containers_without_an_overlay() {
    need!(available());
    let topology = Topology::two_hosts().unwrap();
    let (host_a, host_b) = topology.pair().unwrap();
    let a = host_a.add_container(subnet("10.3.5.0/24"), MTU).unwrap();
    let b = host_b.add_container(subnet("10.3.6.0/24"), MTU).unwrap();
    let request = PingRequest {
        count: 1,
        timeout: Duration::from_millis(200),
        ..PingRequest::new(b.address())
    };
    assert_eq!(ping(a.namespace(), request).unwrap().received, 0);
    let transfer = TransferRequest {
        deadline: Duration::from_millis(300),
        ..TransferRequest::new(b.address(), 1)
    };
    let outcome = tcp_transfer(a.namespace(), b.namespace(), transfer, |_| ());
    assert!(outcome.is_err(), "{outcome:?}");
}

#[test]
fn three_hosts_share_one_underlay() {
    need!(available());
    let topology = Topology::with_hosts(3).unwrap();
    for from in topology.hosts() {
        for to in topology.hosts() {
            let report = ping(from.namespace(), PingRequest::new(to.address())).unwrap();
            assert!(report.is_complete(), "{}: {report:?}", to.node().name());
            assert_eq!(report.ttls, [64, 64, 64]);
        }
    }
}

#[test]
fn containers_of_a_host_share_its_bridge() {
    need!(available());
    let topology = Topology::two_hosts().unwrap();
    let (host, _) = topology.pair().unwrap();
    let small = subnet("10.3.5.0/30");
    let only = host.add_container(small, MTU).unwrap();
    assert_eq!(only.address().to_string(), "10.3.5.2");
    let full = host.add_container(small, MTU).unwrap_err();
    assert!(matches!(full, TestbedError::Request(_)), "{full}");
    let report = ping(only.namespace(), PingRequest::new(only.gateway())).unwrap();
    assert!(report.is_complete(), "{report:?}");
    let routed = ping(only.namespace(), PingRequest::new(host.address())).unwrap();
    assert!(routed.is_complete(), "{routed:?}");
}

#[test]
fn datagrams_come_back_and_losses_are_counted() {
    need!(available());
    let topology = Topology::two_hosts().unwrap();
    let (a, b) = topology.pair().unwrap();
    let echo = udp_echo(b.namespace(), b.address()).unwrap();
    let request = PingPongRequest {
        destination: echo.address(),
        payload_len: 1000,
        count: 20,
        timeout: Duration::from_secs(1),
    };
    let report = udp_ping_pong(a.namespace(), request).unwrap();
    assert_eq!((report.sent, report.received), (20, 20));
    assert!(report.percentile(0.5) <= report.percentile(1.0));

    drop(echo);
    let request = PingPongRequest {
        count: 2,
        timeout: Duration::from_millis(100),
        ..request
    };
    let report = udp_ping_pong(a.namespace(), request).unwrap();
    assert_eq!((report.sent, report.received), (2, 0));
}

#[test]
fn impossible_requests_are_refused() {
    for count in [0, 1, 251] {
        assert!(Topology::with_hosts(count).is_err(), "{count} hosts");
    }
}
