//! Two hosts: one with the kernel's vxlan, one with our packet loop in this process.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use ipnet::Ipv4Net;
use uvxlan::dataplane::counters::{Counter, Kind as CounterKind, Totals};
use uvxlan::dataplane::inbound::header_checks::LocalVtep;
use uvxlan::dataplane::ingress_policy::IngressPolicy;
use uvxlan::dataplane::{Dataplane, Options, Tuning};
use uvxlan::host::netlink::Route;
use uvxlan::route::peer::{PeerId, RemoteVtep};
use uvxlan::route::publish::Routes;
use uvxlan::route::table::RouteTable;
use uvxlan::sys::tun::{self, TunOffload, TunOptions};
use uvxlan::testbed::traffic::{PingRequest, ping};
use uvxlan::testbed::{
    Container, Host, KernelVxlan, Node, Topology, UNDERLAY_DEVICE, available, kernel_has_vxlan,
};
use uvxlan::wire::vxlan::DEFAULT_PORT;
use uvxlan::wire::{MacAddr, Vni};

/// MTU of the overlay.
pub(crate) const MTU: u16 = 1450;
/// Name of the overlay device on both hosts, as in flannel.
pub(crate) const DEVICE: &str = "flannel.1";
/// MAC of the kernel's VTEP.
pub(crate) const KERNEL_MAC: MacAddr = MacAddr([0x0e, 0, 0, 0, 0, 1]);
/// MAC of our VTEP.
pub(crate) const OUR_MAC: MacAddr = MacAddr([0x0e, 0, 0, 0, 0, 2]);

/// Whether namespaces and the kernel's vxlan are available.
pub(crate) fn possible() -> Result<(), String> {
    available()?;
    kernel_has_vxlan()
}

/// Subnet of the host with the kernel's vxlan.
pub(crate) fn kernel_subnet() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 3, 5, 0), 24)
}

/// Subnet of the host with our packet loop.
pub(crate) fn our_subnet() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 3, 6, 0), 24)
}

/// The kernel's vxlan device on a host, set up as flannel does.
pub(crate) fn kernel_end(host: &Host, subnet: Ipv4Net, mac: MacAddr) -> KernelVxlan {
    KernelVxlan::start(host, Vni::DEFAULT, DEFAULT_PORT, subnet, mac).unwrap()
}

/// The overlay network.
pub(crate) fn network() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 3, 0, 0), 16)
}

/// Our packet loop on a host, with one peer.
pub(crate) fn our_end(
    host: &Host,
    subnet: Ipv4Net,
    mac: MacAddr,
    peer: (Ipv4Net, &Host, MacAddr),
) -> Dataplane {
    policed_end(host, subnet, mac, peer, IngressPolicy::off())
}

/// The same, with an ingress policy.
pub(crate) fn policed_end(
    host: &Host,
    subnet: Ipv4Net,
    mac: MacAddr,
    peer: (Ipv4Net, &Host, MacAddr),
    ingress_policy: IngressPolicy,
) -> Dataplane {
    let (peer_subnet, peer_host, peer_mac) = peer;
    let peers = [(peer_subnet, peer_host.address(), peer_mac)];
    policed_end_among(host, subnet, mac, &peers, ingress_policy)
}

/// The same, with several peers, of which the first has a route.
pub(crate) fn policed_end_among(
    host: &Host,
    subnet: Ipv4Net,
    mac: MacAddr,
    peers: &[(Ipv4Net, Ipv4Addr, MacAddr)],
    ingress_policy: IngressPolicy,
) -> Dataplane {
    let routes = peers.iter().zip(0..).map(|((subnet, address, mac), id)| {
        let endpoint = SocketAddrV4::new(*address, DEFAULT_PORT);
        (*subnet, RemoteVtep::new(endpoint, *mac, PeerId(id)))
    });
    let table = RouteTable::empty(network(), 24).with(routes);
    let options = Options {
        vtep: LocalVtep {
            vni: Vni::DEFAULT,
            mac,
        },
        mtu: MTU,
        source: host.address(),
        receive: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, DEFAULT_PORT),
        routes: Routes::new(table),
        ingress_policy,
        tuning: Tuning {
            spin: Duration::ZERO,
            ..Tuning::default()
        },
        taps: uvxlan::dataplane::tap::Taps::default(),
        probes: None,
    };
    let start = || {
        let device = tun::open(&TunOptions {
            name: DEVICE.into(),
            queues: 2,
            offload: TunOffload::TcpUdp,
        })
        .unwrap();
        Dataplane::start(device, &options, |gone| panic!("{gone}")).unwrap()
    };
    let dataplane = host.namespace().run(start).unwrap();
    configure(host.node(), subnet.network(), peers[0].0);
    dataplane
}

fn configure(node: &Node, address: Ipv4Addr, peer_subnet: Ipv4Net) {
    node.netlink(async |netlink| {
        let index = netlink.expect_link(DEVICE).await?.index;
        netlink.set_mtu(index, u32::from(MTU)).await?;
        netlink.add_address(index, address, 32).await?;
        netlink.set_up(index, true).await?;
        let route = Route {
            onlink: true,
            ..Route::ours(peer_subnet, Some(peer_subnet.network()), index)
        };
        netlink.replace_route(&route).await
    })
    .unwrap();
}

/// The owner of a host's tunnel port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Kernel,
    Ours,
}

/// A running tunnel endpoint, kept for its lifetime.
pub(crate) enum End {
    Kernel(KernelVxlan),
    Ours(Box<Dataplane>),
}

impl End {
    /// An endpoint of either kind that looks the same from outside.
    pub(crate) fn start(
        kind: Kind,
        host: &Host,
        subnet: Ipv4Net,
        mac: MacAddr,
        peer: (Ipv4Net, &Host, MacAddr),
    ) -> Self {
        match kind {
            Kind::Kernel => {
                let vxlan = kernel_end(host, subnet, mac);
                vxlan.add_peer(peer.0, peer.1.address(), peer.2).unwrap();
                Self::Kernel(vxlan)
            }
            Kind::Ours => Self::Ours(Box::new(our_end(host, subnet, mac, peer))),
        }
    }
}

/// The kernel's vxlan on the first host, our packet loop on the second, a container on each.
pub(crate) struct Overlay {
    pub(crate) topology: Topology,
    pub(crate) vxlan: KernelVxlan,
    pub(crate) dataplane: Dataplane,
    pub(crate) in_kernel: Container,
    pub(crate) in_ours: Container,
}

impl Overlay {
    pub(crate) fn new() -> Self {
        let topology = Topology::two_hosts().unwrap();
        let (kernel, ours) = topology.pair().unwrap();
        let vxlan = kernel_end(kernel, kernel_subnet(), KERNEL_MAC);
        vxlan
            .add_peer(our_subnet(), ours.address(), OUR_MAC)
            .unwrap();
        let peer = (kernel_subnet(), kernel, KERNEL_MAC);
        let dataplane = our_end(ours, our_subnet(), OUR_MAC, peer);
        let mtu = u32::from(MTU);
        let in_kernel = kernel.add_container(kernel_subnet(), mtu).unwrap();
        let in_ours = ours.add_container(our_subnet(), mtu).unwrap();
        // The first packets over new links may be lost, before anything that is tested here.
        let request = PingRequest {
            count: 1,
            ..PingRequest::new(in_kernel.address())
        };
        let reached = (0..10).any(|_| ping(in_ours.namespace(), request).unwrap().is_complete());
        assert!(reached, "the containers reach each other");
        Self {
            topology,
            vxlan,
            dataplane,
            in_kernel,
            in_ours,
        }
    }

    pub(crate) fn kernel_host(&self) -> &Host {
        self.topology.pair().unwrap().0
    }

    pub(crate) fn our_host(&self) -> &Host {
        self.topology.pair().unwrap().1
    }

    /// Both containers, in both directions.
    pub(crate) fn directions(&self) -> [(&Container, &Container); 2] {
        [
            (&self.in_kernel, &self.in_ours),
            (&self.in_ours, &self.in_kernel),
        ]
    }

    /// Asserts that we dropped nothing, and that every packet is accounted for.
    pub(crate) fn assert_nothing_dropped(&self) -> Totals {
        let totals = self.dataplane.totals();
        // IPv6 neighbour discovery of the device itself and the like do not matter here.
        let expected = [Counter::OutNotIpv4, Counter::OutNotUnicast];
        for counter in Counter::ALL.iter().filter(|c| !expected.contains(c)) {
            if matches!(counter.kind(), CounterKind::DropIn | CounterKind::DropOut) {
                assert_eq!(totals.get(*counter), 0, "{}", counter.label());
            }
        }
        totals
    }
}

/// Transmit offloads of a device: checksums and segmentation.
const OFFLOADS: [&str; 10] = [
    "tx-checksum-ip-generic",
    "tx-checksum-ipv4",
    "tx-checksum-ipv6",
    "tx-checksum-sctp",
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-generic-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
];

/// Turns off the transmit offloads of a node's underlay device, as on a physical link, or
/// returns why that is impossible here.
pub(crate) fn finish_on_sending(node: &Node, device: &str) -> Result<(), String> {
    let off: Vec<_> = OFFLOADS.iter().map(|name| (*name, false)).collect();
    node.set_features(device, &off)
        .map_err(|error| error.to_string())
}

/// The hosts' underlay device.
pub(crate) const UNDERLAY: &str = UNDERLAY_DEVICE;
