//! The host modules on a real kernel, in namespaces that end with the test.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use uvxlan::host::interface::{self, Selection};
use uvxlan::host::link::{DeviceSettings, LinkError, configure, take_over_kernel_vxlan};
use uvxlan::host::netlink::{Netlink, NetlinkError, ROUTE_PROTOCOL, Route, VxlanSettings};
use uvxlan::host::routes::{
    NextHop, NextHopChange, OverlayNetwork, RouteError, overlay_route, reconcile, update,
};
use uvxlan::testbed::{Node, Topology, available, kernel_has_vxlan};
use uvxlan::wire::{MacAddr, Vni};

use crate::support::need;

const DEVICE: &str = "flannel.1";
const PROTOCOL_BOOT: u8 = 3;

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn overlay(device: u32) -> OverlayNetwork {
    OverlayNetwork {
        network: net("10.3.0.0/16"),
        device,
        blackhole: None,
    }
}

fn subnets(texts: &[&str]) -> BTreeMap<Ipv4Net, NextHop> {
    texts
        .iter()
        .map(|text| (net(text), NextHop::Tunnel))
        .collect()
}

/// A node with a persistent TUN or TAP device `flannel.1`, or why there is none.
fn node_with_tun(mode: &str) -> Result<Node, String> {
    available()?;
    let node = Node::new("host").map_err(|error| error.to_string())?;
    let mut command = Command::new("ip");
    command.args(["tuntap", "add", DEVICE, "mode", mode]);
    let status = node.namespace().command(command).status();
    match status {
        Ok(status) if status.success() => Ok(node),
        other => Err(format!("could not make a {mode} device with ip: {other:?}")),
    }
}

fn settings(address: &str) -> DeviceSettings {
    DeviceSettings {
        mtu: 1450,
        address: ip(address),
        network: net("10.3.0.0/16"),
        tx_queue_len: Some(128),
    }
}

/// Configures the device; returns its index.
async fn configured(netlink: &Netlink) -> u32 {
    let device = netlink.expect_link(DEVICE).await.unwrap().index;
    let done = configure(netlink, device, settings("10.3.9.0")).await;
    done.unwrap();
    device
}

/// Runs `work` in the node, with any error type.
fn in_node<T: Send>(node: &Node, work: impl AsyncFnOnce(Netlink) -> T + Send) -> T {
    let run = async || work(Netlink::connect().unwrap()).await;
    node.block_on(run).unwrap()
}

#[test]
fn a_kernel_vxlan_is_taken_over_with_its_mac() {
    need!(available());
    need!(kernel_has_vxlan());
    let node = Node::new("host").unwrap();
    let mac = MacAddr([0xf6, 0xdf, 0xb4, 0xd0, 0x5d, 0x72]);
    in_node(&node, async |netlink| {
        netlink.create_bridge("eth0").await.unwrap();
        let below = netlink.expect_link("eth0").await.unwrap().index;
        let vxlan = VxlanSettings {
            name: DEVICE.into(),
            vni: Vni::DEFAULT,
            port: 8472,
            local: Ipv4Addr::LOCALHOST,
            device: below,
            mtu: 1450,
            mac,
        };
        netlink.create_vxlan(&vxlan).await.unwrap();
        let made = netlink.expect_link(DEVICE).await.unwrap();
        assert_eq!(
            (made.kind.as_deref(), made.mac, made.mtu),
            (Some("vxlan"), Some(mac), 1450)
        );

        assert_eq!(
            take_over_kernel_vxlan(&netlink, DEVICE).await.unwrap(),
            Some(mac)
        );
        assert_eq!(netlink.link_by_name(DEVICE).await.unwrap(), None);
        assert_eq!(
            take_over_kernel_vxlan(&netlink, DEVICE).await.unwrap(),
            None
        );
    });
}

#[test]
fn somebody_elses_device_is_not_taken() {
    need!(available());
    let node = Node::new("host").unwrap();
    in_node(&node, async |netlink| {
        netlink.create_bridge(DEVICE).await.unwrap();
        let error = take_over_kernel_vxlan(&netlink, DEVICE).await.unwrap_err();
        assert!(
            matches!(&error, LinkError::NameTaken { kind, .. } if kind == "bridge"),
            "{error}"
        );
        assert!(
            netlink.link_by_name(DEVICE).await.unwrap().is_some(),
            "it is left alone"
        );
    });
}

#[test]
fn a_tap_is_not_mistaken_for_our_tun() {
    for (mode, ours) in [("tun", true), ("tap", false)] {
        let node = need!(node_with_tun(mode));
        in_node(&node, async |netlink| {
            let outcome = take_over_kernel_vxlan(&netlink, DEVICE).await;
            assert_eq!(outcome.is_ok(), ours, "{mode}: {outcome:?}");
            assert!(
                netlink.link_by_name(DEVICE).await.unwrap().is_some(),
                "{mode}"
            );
        });
    }
}

#[test]
fn the_device_gets_mtu_one_address_and_no_ipv6() {
    let node = need!(node_with_tun("tun"));
    in_node(&node, async |netlink| {
        let index = netlink.expect_link(DEVICE).await.unwrap().index;
        for (address, prefix_len) in [("10.3.7.0", 32), ("10.3.9.1", 24), ("169.254.7.7", 16)] {
            netlink
                .add_address(index, ip(address), prefix_len)
                .await
                .unwrap();
        }
        // The second time must neither change anything nor fail.
        for _ in 0..2 {
            configure(&netlink, index, settings("10.3.9.0"))
                .await
                .unwrap();
            let link = netlink.expect_link(DEVICE).await.unwrap();
            assert_eq!((link.mtu, link.up, link.tx_queue_len), (1450, true, 128));
            let addresses = netlink.addresses(Some(index)).await.unwrap();
            let seen: BTreeSet<(IpAddr, u8)> = addresses
                .iter()
                .map(|entry| (entry.address, entry.prefix_len))
                .collect();
            let expected = [(ip("10.3.9.0").into(), 32), (ip("169.254.7.7").into(), 16)];
            assert_eq!(seen, BTreeSet::from(expected));
        }
        // A device that no process has open has no carrier, and gets no address anyway.
        for (setting, expected) in [("accept_ra", "0"), ("addr_gen_mode", "1")] {
            let path = format!("/proc/sys/net/ipv6/conf/{DEVICE}/{setting}");
            if let Ok(value) = std::fs::read_to_string(path) {
                assert_eq!(value.trim(), expected, "{setting}");
            }
        }
        let missing = configure(&netlink, 999, settings("10.3.9.0"))
            .await
            .unwrap_err();
        assert!(missing.to_string().contains("999"), "{missing}");
    });
}

#[test]
fn routes_follow_the_peers_and_foreign_ones_stay() {
    let node = need!(node_with_tun("tun"));
    in_node(&node, async |netlink| {
        let device = configured(&netlink).await;
        let foreign = foreign_route(&netlink).await.unwrap();

        let peers = subnets(&["10.3.5.0/24", "10.3.6.0/24", "10.3.7.0/24"]);
        let report = reconcile(&netlink, &peers, overlay(device)).await.unwrap();
        assert_eq!((report.added, report.removed), (2, 0));
        let [(subnet, RouteError::Conflict { .. })] = report.failed.as_slice() else {
            panic!("one conflict expected: {report:?}");
        };
        assert_eq!(*subnet, foreign.destination);
        expect_ours(&netlink, device, &["10.3.5.0/24", "10.3.6.0/24"]).await;

        let again = reconcile(&netlink, &peers, overlay(device)).await.unwrap();
        assert_eq!((again.added, again.replaced, again.removed), (0, 0, 0));

        let fewer = subnets(&["10.3.6.0/24", "10.3.8.0/24"]);
        let report = reconcile(&netlink, &fewer, overlay(device)).await.unwrap();
        assert_eq!((report.added, report.removed), (1, 1));
        expect_ours(&netlink, device, &["10.3.6.0/24", "10.3.8.0/24"]).await;

        // Single changes, without reading the kernel's routes; one differs from what it should be.
        assert!(report.foreign.contains(&foreign.destination));
        let tunnel = Some(NextHop::Tunnel);
        let change = |subnet: &str, before, after| NextHopChange {
            subnet: net(subnet),
            before,
            after,
        };
        let changes = [
            change("10.3.5.0/24", None, tunnel),
            change("10.3.6.0/24", tunnel, None),
            change("10.3.4.0/24", tunnel, None),
            change("10.3.8.0/24", tunnel, tunnel),
        ];
        let report = update(&netlink, &changes, overlay(device)).await;
        assert!(report.failed.is_empty(), "{report:?}");
        expect_ours(&netlink, device, &["10.3.5.0/24", "10.3.8.0/24"]).await;
        let report = update(&netlink, &changes[..1], overlay(device)).await;
        assert_eq!(report.failed.len(), 1, "it exists already");

        reconcile(&netlink, &BTreeMap::new(), overlay(device))
            .await
            .unwrap();
        expect_ours(&netlink, device, &[]).await;
        let left = netlink.routes().await.unwrap();
        assert!(left.contains(&foreign), "{left:?}");
    });
}

/// A route with the prefix of a peer's subnet, as an administrator would add it.
async fn foreign_route(netlink: &Netlink) -> Result<Route, NetlinkError> {
    netlink.create_bridge("eth0").await?;
    let index = netlink.expect_link("eth0").await?.index;
    netlink.set_up(index, true).await?;
    let route = Route {
        protocol: PROTOCOL_BOOT,
        metric: 100,
        ..Route::ours(net("10.3.7.0/24"), None, index)
    };
    netlink.add_route(&route).await?;
    Ok(route)
}

async fn expect_ours(netlink: &Netlink, device: u32, expected: &[&str]) {
    let routes = netlink.routes().await.unwrap();
    let ours: Vec<Route> = routes
        .into_iter()
        .filter(|route| route.protocol == ROUTE_PROTOCOL)
        .collect();
    let expected: Vec<Route> = expected
        .iter()
        .map(|text| overlay_route(net(text), device))
        .collect();
    assert_eq!(ours, expected);
    for route in ours {
        let inside = route.destination.hosts().next().unwrap();
        let lookup = netlink.route_get(inside).await.unwrap().unwrap();
        assert_eq!(lookup.ifindex, device);
        assert_eq!(
            lookup.prefsrc,
            Some(ip("10.3.9.0")),
            "as flannel's host traffic"
        );
    }
}

#[test]
fn a_wrong_route_of_ours_is_corrected() {
    let node = need!(node_with_tun("tun"));
    in_node(&node, async |netlink| {
        let device = configured(&netlink).await;
        let crooked = Route {
            gateway: Some(ip("10.3.5.77")),
            ..overlay_route(net("10.3.5.0/24"), device)
        };
        netlink.add_route(&crooked).await.unwrap();
        let report = reconcile(&netlink, &subnets(&["10.3.5.0/24"]), overlay(device))
            .await
            .unwrap();
        assert_eq!((report.replaced, report.failed.len()), (1, 0));
        expect_ours(&netlink, device, &["10.3.5.0/24"]).await;
    });
}

/// flannel's `pkg/ipmatch/match_test.go` against the kernel.
#[test]
fn the_interface_is_chosen_as_flannel_chooses_it() {
    need!(available());
    let topology = Topology::two_hosts().unwrap();
    let (host, _) = topology.pair().unwrap();
    in_node(host.node(), async |netlink| {
        netlink.create_bridge("dummy0").await.unwrap();
        let dummy = netlink.expect_link("dummy0").await.unwrap().index;
        netlink.set_up(dummy, true).await.unwrap();
        for address in [
            "1.10.100.1",
            "192.168.200.128",
            "172.16.30.18",
            "172.16.32.100",
        ] {
            netlink.add_address(dummy, ip(address), 32).await.unwrap();
        }
        let far = Route {
            protocol: PROTOCOL_BOOT,
            ..Route::ours(net("172.16.32.254/32"), None, dummy)
        };
        netlink.add_route(&far).await.unwrap();

        let chosen = choose(&netlink, &Selection::default()).await;
        assert_eq!(chosen, ("eth0".into(), host.address()));
        let by_pattern = Selection {
            patterns: vec![r"192\.168\.200\.\d+".into()],
            ..Selection::default()
        };
        let expected = ("dummy0".into(), ip("192.168.200.128"));
        assert_eq!(choose(&netlink, &by_pattern).await, expected);
        let by_reach = Selection {
            can_reach: Some(ip("172.16.32.254")),
            ..Selection::default()
        };
        assert_eq!(choose(&netlink, &by_reach).await.0, "dummy0");
    });
}

async fn choose(netlink: &Netlink, selection: &Selection) -> (String, Ipv4Addr) {
    let snapshot = interface::snapshot(netlink, selection).await.unwrap();
    let chosen = interface::choose(selection, &snapshot).unwrap();
    assert!(chosen.mtu > 0 && chosen.index > 0);
    (chosen.name, chosen.address)
}

#[test]
fn failures_name_what_was_tried() {
    need!(available());
    let node = Node::new("host").unwrap();
    let refused = node.netlink(async |netlink| netlink.set_mtu(999, 1450).await);
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains("host") && text.contains("MTU of link 999 to 1450"),
        "{text}"
    );
    in_node(&node, async |netlink| {
        assert_eq!(netlink.link_by_index(999).await.unwrap(), None);
        let long = "a-name-longer-than-the-kernel-allows";
        assert_eq!(netlink.link_by_name(long).await.unwrap(), None);
        assert_eq!(netlink.default_route_ifindex().await.unwrap(), None);
        assert_eq!(netlink.route_get(ip("198.51.100.1")).await.unwrap(), None);
    });
}

#[test]
fn nothing_is_left_when_a_topology_is_dropped() {
    need!(available());
    let topology = Topology::two_hosts().unwrap();
    let (survivor, _) = topology.pair().unwrap();
    let survivor = survivor.node().clone();
    drop(topology);
    // The veth pair is deleted with the other end's namespace, which the kernel removes
    // asynchronously.
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        let links = survivor
            .netlink(async |netlink| netlink.links().await)
            .unwrap();
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        if names == ["lo"] {
            break;
        }
        assert!(Instant::now() < give_up, "still there: {names:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
