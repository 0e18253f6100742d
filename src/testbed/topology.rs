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
const UNDERLAY_PREFIX: u8 = 24;
const MAX_HOSTS: usize = 250;
/// `RTPROT_BOOT`: what `ip route add` gives a route.
const PROTOCOL_BOOT: u8 = 3;

/// Hosts on one underlay network.
#[derive(Debug)]
pub struct Topology {
    hosts: Vec<Host>,
    /// Holds the bridge that joins more than two hosts.
    _switch: Option<Node>,
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
        let nodes: Vec<Node> = (0..count)
            .map(|index| Node::new(host_name(index)))
            .collect::<Result<_, _>>()?;
        let switch = if let [a, b] = nodes.as_slice() {
            join_pair(a, b)?;
            None
        } else {
            Some(join_by_switch(&nodes)?)
        };
        let numbered = nodes.into_iter().zip(1u8..);
        let hosts = numbered.map(|(node, number)| Host::start(node, number));
        Ok(Self {
            hosts: hosts.collect::<Result<_, _>>()?,
            _switch: switch,
        })
    }

    /// The hosts, in order of their addresses.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
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

fn join_by_switch(nodes: &[Node]) -> Result<Node, TestbedError> {
    let switch = Node::new("switch")?;
    switch.netlink(async |netlink| {
        let bridge = create_bridge(netlink, "br0", UNDERLAY_MTU).await?;
        for (port, node) in nodes.iter().enumerate() {
            let name = format!("port{port}");
            let peer = node.namespace().as_fd();
            netlink.create_veth(&name, UNDERLAY_DEVICE, peer).await?;
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

/// Gives a device its address, sets it up and sends everything else over it.
async fn bring_up(
    netlink: &Netlink,
    device: &str,
    address: Ipv4Net,
    mtu: u32,
    gateway: Option<Ipv4Addr>,
) -> Result<(), NetlinkError> {
    let index = netlink.expect_link(device).await?.index;
    netlink.set_mtu(index, mtu).await?;
    netlink
        .add_address(index, address.addr(), address.prefix_len())
        .await?;
    netlink.set_up(index, true).await?;
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
    fn start(node: Node, number: u8) -> Result<Self, TestbedError> {
        let [a, b, c] = UNDERLAY;
        let address = Ipv4Addr::new(a, b, c, number);
        let net = net(address, UNDERLAY_PREFIX)?;
        node.netlink(async |netlink| {
            bring_up(netlink, UNDERLAY_DEVICE, net, UNDERLAY_MTU, None).await
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
        node.netlink(async |netlink| bring_up(netlink, "eth0", own, mtu, Some(gateway)).await)?;
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
