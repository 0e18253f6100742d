//! Facts about a healthy node, for tests to break.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use bytes::Bytes;

use super::facts::{
    DaemonFacts, EchoSize, Facts, FileFacts, FirewallFacts, HostFacts, MachineFacts, Member,
    MemberReply, PeerFacts, Reachability, StoreFacts,
};
use crate::control::{
    NodeStatus, PacketLoopStatus, PeerCheck, PeerRoute, PeerState, PeerStatus, Phase, ProbeMethod,
    Status,
};
use crate::daemon::state::state_file::State;
use crate::dataplane::offloads::Offloads;
use crate::host::interface::ExternalInterface;
use crate::host::netlink::{AddressInfo, LinkInfo, RouteLookup};
use crate::host::port::Holder;
use crate::host::routes::overlay_route;
use crate::subnet::config::NetworkConfig;
use crate::subnet::store::{Listing, Record};
use crate::sys::kernel::Version;
use crate::wire::{MacAddr, Vni};

const CONFIG: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const THEIRS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const PID: u32 = 4711;

pub(super) fn link(index: u32, name: &str, kind: &str) -> LinkInfo {
    LinkInfo {
        index,
        name: name.into(),
        mtu: if kind.is_empty() { 1500 } else { 1450 },
        kind: (!kind.is_empty()).then(|| kind.into()),
        vxlan_port: None,
        mac: None,
        up: true,
        flags: 1,
        master: None,
        tx_queue_len: 500,
    }
}

pub(super) fn address(ifindex: u32, address: &str, prefix_len: u8) -> AddressInfo {
    AddressInfo {
        ifindex,
        address: address.parse().unwrap(),
        prefix_len,
        scope: 0,
        deprecated: false,
        permanent: true,
        temporary: false,
    }
}

pub(super) fn record(name: &str, public_ip: &str) -> Record {
    let value = format!(
        r#"{{"PublicIP":"{public_ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}}}}"#
    );
    Record {
        name: name.into(),
        value: value.into(),
        revision: 1,
        created: 1,
        expires: true,
    }
}

fn status() -> Status {
    Status {
        phase: Phase::Serving,
        pid: PID,
        node: Some(NodeStatus {
            subnet: "10.5.1.0/24".parse().unwrap(),
            network: "10.5.0.0/16".parse().unwrap(),
            public_ip: OURS,
            interface: "eth0".into(),
            interface_mtu: 1500,
            device: "flannel.1".into(),
            mtu: 1450,
            vni: 1,
            port: 8472,
            vtep_mac: "02:00:00:00:00:01".into(),
        }),
        packet_loop: Some(PacketLoopStatus {
            workers: 2,
            offloads: "read,send".into(),
            lacking: vec![],
            peer_check: PeerCheck::Enforce,
            ..PacketLoopStatus::default()
        }),
        peers: vec![PeerStatus {
            subnet: "10.5.2.0/24".parse().unwrap(),
            public_ip: THEIRS,
            vtep_mac: "02:00:00:00:00:02".into(),
            route: PeerRoute::Tunnel,
            state: PeerState::Ok,
            probe: Some(ProbeMethod::InBand),
            rtt_us: Some(100),
            loss_percent: Some(0),
            loss_out_percent: None,
            loss_in_percent: None,
            path_mtu: Some(1450),
            seen_seconds_ago: Some(1),
            out_packets: 1,
            out_bytes: 1,
            in_packets: 1,
            in_bytes: 1,
        }],
        ..Status::default()
    }
}

fn state() -> State {
    State {
        vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        subnet: "10.5.1.0/24".parse().unwrap(),
        public_ip: OURS,
        network: "10.5.0.0/16".parse().unwrap(),
        vni: Vni::DEFAULT,
        instance: None,
    }
}

fn host() -> HostFacts {
    let peer = "10.5.2.0/24".parse().unwrap();
    let lookup = RouteLookup {
        ifindex: 3,
        prefsrc: None,
        gateway: None,
        local: false,
    };
    HostFacts {
        unread: None,
        links: vec![
            link(2, "eth0", ""),
            link(3, "flannel.1", "tun"),
            link(4, "docker0", "bridge"),
        ],
        addresses: vec![
            address(2, "192.0.2.1", 24),
            address(3, "10.5.1.0", 32),
            address(4, "10.5.1.1", 24),
        ],
        routes: vec![overlay_route(peer, 3)],
        lookups: BTreeMap::from([(peer, Some(lookup))]),
        external: Some(Ok(ExternalInterface {
            name: "eth0".into(),
            index: 2,
            mtu: 1500,
            address: OURS,
            public_ip: OURS,
        })),
        holders: vec![Holder {
            pid: Some(PID),
            name: "uvxlan".into(),
        }],
    }
}

fn store() -> StoreFacts {
    StoreFacts {
        place: "etcd v3 http://192.0.2.1:2379 prefix /coreos.com/network".into(),
        members: vec![Member {
            url: "http://192.0.2.1:2379".into(),
            reply: Ok(MemberReply {
                status: 200,
                skew: Some(0),
            }),
        }],
        config: Some(Ok(Some(Bytes::from_static(CONFIG.as_bytes())))),
        network: NetworkConfig::parse(CONFIG.as_bytes(), None).ok(),
        listing: Some(Ok(Listing {
            records: vec![
                record("10.5.1.0-24", "192.0.2.1"),
                record("10.5.2.0-24", "192.0.2.2"),
            ],
            revision: 1,
        })),
        peers: vec![PeerFacts {
            subnet: "10.5.2.0/24".parse().unwrap(),
            public_ip: THEIRS,
            tunnel: true,
        }],
        ..StoreFacts::default()
    }
}

/// A node that serves 10.5.1.0/24, with one peer that has 10.5.2.0/24.
pub(super) fn healthy() -> Facts {
    let sysctls = [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
    ];
    Facts {
        machine: MachineFacts {
            tun: Ok(()),
            capabilities: Ok((true, true)),
            kernel: Version(6, 12, 0),
            offloads: Some((Offloads::AUTO, vec![])),
            node: None,
            sysctls: sysctls.map(|(path, value)| (path.into(), value.into())).into(),
        },
        daemon: DaemonFacts::Answers(Box::new(status())),
        host: host(),
        firewall: FirewallFacts {
            legacy: None,
            iptables: Some(Ok("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n".into())),
            nft: Some(Ok(r#"{"nftables": []}"#.into())),
        },
        files: FileFacts {
            subnet_path: "/run/flannel/subnet.env".into(),
            subnet: Ok(Some(
                b"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
                    .to_vec(),
            )),
            state_path: "/var/lib/uvxlan/state.json".into(),
            state: Ok(Some(state())),
        },
        store: store(),
        reach: Ok(vec![Reachability {
            subnet: "10.5.2.0/24".parse().unwrap(),
            public_ip: THEIRS,
            sizes: vec![84, 1280, 1450]
                .into_iter()
                .map(|bytes| EchoSize { bytes, answered: true })
                .collect(),
            largest: None,
            heard: false,
        }]),
    }
}

/// The same host before a daemon was ever started.
pub(super) fn before_the_first_start() -> Facts {
    let mut facts = healthy();
    facts.daemon = DaemonFacts::Absent("no socket".into());
    facts.files.subnet = Ok(None);
    facts.files.state = Ok(None);
    facts.reach = Err("no daemon".into());
    facts.host.links.retain(|link| link.index == 2);
    facts.host.addresses.retain(|entry| entry.ifindex == 2);
    facts.host.routes.clear();
    facts.host.lookups.clear();
    facts.host.holders.clear();
    if let Some(Ok(listing)) = &mut facts.store.listing {
        listing
            .records
            .retain(|record| record.name != "10.5.1.0-24");
    }
    facts
}
