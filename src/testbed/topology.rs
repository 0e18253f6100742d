//! Hosts on one underlay, containers on the hosts.
//!
//! Two hosts are joined by one veth pair; more hang on a bridge in a namespace of its own.
//! Addresses exist only inside the namespaces.
//!
//! ```text
//! container ── cni0 ── host ═══ underlay ═══ host ── cni0 ── container
//!   eth0       .1      eth0  192.0.2.0/24    eth0     .1       eth0
//!   .2                 .1                     .2                .2
//! ```

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use ipnet::Ipv4Net;

use super::namespace::{Node, TestbedError};
use crate::host::netlink::{Netlink, NetlinkError, Route};
use crate::sys::netns::Namespace;

/// The external interface of every host.
pub const UNDERLAY_DEVICE: &str = "eth0";
/// MTU of the underlay in bytes.
pub const UNDERLAY_MTU: u32 = 1500;
/// The bridge on a host to which its containers are joined.
pub const CONTAINER_BRIDGE: &str = "cni0";

/// TEST-NET-1 of RFC 5737, which no real network uses.
const UNDERLAY: [u8; 3] = [192, 0, 2];
/// TEST-NET-2, likewise: the segment behind the router.
const FAR_SEGMENT: [u8; 3] = [198, 51, 100];
/// The router's address in each segment ends so.
const ROUTER: u8 = 254;
const UNDERLAY_PREFIX: u8 = 24;
const MAX_HOSTS: usize = 250;
/// `RTPROT_BOOT`: what `ip route add` gives a route.
const PROTOCOL_BOOT: u8 = 3;

/// Hosts on one underlay network.
#[derive(Debug)]
pub struct Topology {
    hosts: Vec<Host>,
    /// The bridge that joins more than two hosts lives as long as its node, and so does the
    /// router, which is the last.
    others: Vec<Node>,
}

impl Topology {
    /// Two hosts, `host-a` and `host-b`, joined by a veth pair.
    ///
    /// # Errors
    ///
    /// See [`super::namespace::available`].
    pub fn two_hosts() -> Result<Self, TestbedError> {
        Self::with_hosts(2)
    }

    /// `count` hosts, 2 to 250, named `host-a`, `host-b`, ..., `host-27`, ...
    ///
    /// # Errors
    ///
    /// For another count; and see [`super::namespace::available`].
    pub fn with_hosts(count: usize) -> Result<Self, TestbedError> {
        if !(2..=MAX_HOSTS).contains(&count) {
            return Err(TestbedError::Request(format!(
                "a topology of {count} hosts can't be made: 2 to {MAX_HOSTS} are possible"
            )));
        }
        let nodes = named(0..count)?;
        let others = if let [a, b] = nodes.as_slice() {
            join_pair(a, b)?;
            Vec::new()
        } else {
            vec![join_by_switch(&on_underlay(&nodes))?]
        };
        Ok(Self {
            hosts: start_all(nodes, UNDERLAY, None)?,
            others,
        })
    }

    /// Hosts in two segments with prefixes of their own, `near` in the first and `far` in the
    /// second, joined by a router over which each has its default route.
    ///
    /// # Errors
    ///
    /// For more hosts than a segment has addresses; and see [`super::namespace::available`].
    pub fn two_segments(near: usize, far: usize) -> Result<Self, TestbedError> {
        if near.max(far) > MAX_HOSTS {
            return Err(TestbedError::Request(format!(
                "a segment has at most {MAX_HOSTS} hosts"
            )));
        }
        let router = Node::new("router")?;
        let mut this = Self {
            hosts: Vec::new(),
            others: Vec::new(),
        };
        for (numbers, segment, device) in [
            (0..near, UNDERLAY, "near"),
            (near..near + far, FAR_SEGMENT, "far"),
        ] {
            let nodes = named(numbers)?;
            let mut ports = on_underlay(&nodes);
            ports.push((&router, device));
            this.others.push(join_by_switch(&ports)?);
            let gateway = address(segment, ROUTER);
            let own = net(gateway, UNDERLAY_PREFIX)?;
            router.netlink(async |netlink| {
                bring_up(netlink, device, own, UNDERLAY_MTU, Elsewhere::Nowhere).await
            })?;
            this.hosts.extend(start_all(nodes, segment, Some(gateway))?);
        }
        router.sysctl("net/ipv4/ip_forward", "1")?;
        this.others.push(router);
        Ok(this)
    }

    /// The hosts, in order of their addresses.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The router between two segments; its devices are `near` and `far`.
    #[must_use]
    pub fn router(&self) -> Option<&Node> {
        self.others.last().filter(|node| node.name() == "router")
    }

    /// The first two hosts.
    ///
    /// # Errors
    ///
    /// Never for a topology made here.
    pub fn pair(&self) -> Result<(&Host, &Host), TestbedError> {
        match self.hosts.as_slice() {
            [a, b, ..] => Ok((a, b)),
            _ => Err(TestbedError::Request("there are no two hosts".into())),
        }
    }
}

fn named(numbers: std::ops::Range<usize>) -> Result<Vec<Node>, TestbedError> {
    numbers.map(|index| Node::new(host_name(index))).collect()
}

fn on_underlay(nodes: &[Node]) -> Vec<(&Node, &'static str)> {
    nodes.iter().map(|node| (node, UNDERLAY_DEVICE)).collect()
}

/// Hosts with the addresses of a segment, and a default route over its router if it has one.
fn start_all(
    nodes: Vec<Node>,
    segment: [u8; 3],
    gateway: Option<Ipv4Addr>,
) -> Result<Vec<Host>, TestbedError> {
    let numbered = nodes.into_iter().zip(1u8..);
    numbered
        .map(|(node, number)| Host::start(node, address(segment, number), gateway))
        .collect()
}

const fn address([a, b, c]: [u8; 3], number: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, number)
}

fn host_name(index: usize) -> String {
    match u8::try_from(index) {
        Ok(letter @ 0..26) => format!("host-{}", char::from(b'a' + letter)),
        _ => format!("host-{}", index + 1),
    }
}

fn join_pair(a: &Node, b: &Node) -> Result<(), TestbedError> {
    let peer = b.namespace().as_fd();
    a.netlink(async |netlink| {
        netlink
            .create_veth(UNDERLAY_DEVICE, UNDERLAY_DEVICE, peer)
            .await
    })
}

/// Joins devices of nodes by a bridge in a namespace of its own.
fn join_by_switch(ports: &[(&Node, &str)]) -> Result<Node, TestbedError> {
    let switch = Node::new("switch")?;
    switch.netlink(async |netlink| {
        let bridge = create_bridge(netlink, "br0", UNDERLAY_MTU).await?;
        for (port, (node, device)) in ports.iter().enumerate() {
            let name = format!("port{port}");
            let peer = node.namespace().as_fd();
            netlink.create_veth(&name, device, peer).await?;
            join_bridge(netlink, &name, bridge, UNDERLAY_MTU).await?;
        }
        Ok(())
    })?;
    Ok(switch)
}

/// Makes a bridge that is up, and returns its index.
async fn create_bridge(netlink: &Netlink, name: &str, mtu: u32) -> Result<u32, NetlinkError> {
    netlink.create_bridge(name).await?;
    let bridge = netlink.expect_link(name).await?.index;
    netlink.set_mtu(bridge, mtu).await?;
    netlink.set_up(bridge, true).await?;
    Ok(bridge)
}

async fn join_bridge(
    netlink: &Netlink,
    name: &str,
    bridge: u32,
    mtu: u32,
) -> Result<(), NetlinkError> {
    let port = netlink.expect_link(name).await?.index;
    netlink.set_mtu(port, mtu).await?;
    netlink.set_master(port, bridge).await?;
    netlink.set_up(port, true).await
}

/// Where everything else is sent.
enum Elsewhere {
    /// Nowhere.
    Nowhere,
    /// Over the device, straight.
    OnLink,
    /// Over a gateway behind it.
    Via(Ipv4Addr),
}

/// Gives a device its address, sets it up, and makes the default route.
async fn bring_up(
    netlink: &Netlink,
    device: &str,
    address: Ipv4Net,
    mtu: u32,
    default: Elsewhere,
) -> Result<(), NetlinkError> {
    let gateway = match default {
        Elsewhere::Nowhere => None,
        Elsewhere::OnLink => Some(None),
        Elsewhere::Via(gateway) => Some(Some(gateway)),
    };
    let index = netlink.expect_link(device).await?.index;
    netlink.set_mtu(index, mtu).await?;
    netlink
        .add_address(index, address.addr(), address.prefix_len())
        .await?;
    netlink.set_up(index, true).await?;
    let Some(gateway) = gateway else {
        return Ok(());
    };
    let default = Route {
        protocol: PROTOCOL_BOOT,
        ..Route::ours(Ipv4Net::default(), gateway, index)
    };
    netlink.add_route(&default).await
}

/// A host of the underlay: it forwards, and its default route is over `eth0`.
#[derive(Debug, Clone)]
pub struct Host {
    node: Node,
    address: Ipv4Addr,
}

impl Host {
    fn start(
        node: Node,
        address: Ipv4Addr,
        gateway: Option<Ipv4Addr>,
    ) -> Result<Self, TestbedError> {
        let net = net(address, UNDERLAY_PREFIX)?;
        let default = gateway.map_or(Elsewhere::OnLink, Elsewhere::Via);
        node.netlink(async |netlink| {
            bring_up(netlink, UNDERLAY_DEVICE, net, UNDERLAY_MTU, default).await
        })?;
        node.sysctl("net/ipv4/ip_forward", "1")?;
        Ok(Self { node, address })
    }

    /// Its namespace and name.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        self.node.namespace()
    }

    /// Its address on the underlay.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Adds a container with the next free address of `subnet`, the leased subnet of this
    /// host. The first one also makes the bridge, which has the subnet's first address, as
    /// Docker does with `--bip`.
    ///
    /// # Errors
    ///
    /// When the subnet has no room, or the kernel refuses.
    pub fn add_container(&self, subnet: Ipv4Net, mtu: u32) -> Result<Container, TestbedError> {
        let mut hosts = subnet.hosts();
        let full = || TestbedError::Request(format!("{subnet} has no room for a container"));
        let gateway = hosts.next().ok_or_else(full)?;
        let gateway_net = net(gateway, subnet.prefix_len())?;
        let (bridge, taken) = self
            .node
            .netlink(async |netlink| container_bridge(netlink, gateway_net, mtu).await)?;
        let address = hosts.nth(taken).ok_or_else(full)?;
        let node = Node::new(format!("container {address} on {}", self.node.name()))?;
        let peer = node.namespace().as_fd();
        self.node.netlink(async |netlink| {
            let name = format!("veth{taken}");
            netlink.create_veth(&name, "eth0", peer).await?;
            join_bridge(netlink, &name, bridge, mtu).await
        })?;
        let own = net(address, subnet.prefix_len())?;
        node.netlink(async |netlink| {
            bring_up(netlink, "eth0", own, mtu, Elsewhere::Via(gateway)).await
        })?;
        Ok(Container {
            node,
            address,
            gateway,
        })
    }
}

/// Index of the bridge, made if need be, and how many containers it has.
async fn container_bridge(
    netlink: &Netlink,
    gateway: Ipv4Net,
    mtu: u32,
) -> Result<(u32, usize), NetlinkError> {
    let Some(bridge) = netlink.link_by_name(CONTAINER_BRIDGE).await? else {
        let index = create_bridge(netlink, CONTAINER_BRIDGE, mtu).await?;
        netlink
            .add_address(index, gateway.addr(), gateway.prefix_len())
            .await?;
        return Ok((index, 0));
    };
    let links = netlink.links().await?;
    let ports = links
        .iter()
        .filter(|link| link.master == Some(bridge.index));
    Ok((bridge.index, ports.count()))
}

fn net(address: Ipv4Addr, prefix_len: u8) -> Result<Ipv4Net, TestbedError> {
    Ipv4Net::new(address, prefix_len).map_err(|error| {
        TestbedError::Request(format!("{address}/{prefix_len} is no network: {error}"))
    })
}

/// A container: one device `eth0` on the host's bridge, default route over that.
#[derive(Debug, Clone)]
pub struct Container {
    node: Node,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
}

impl Container {
    /// Its namespace and name.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        self.node.namespace()
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The host's address on the bridge.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }
}
