//! A host of the underlay, and containers on it.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use ipnet::Ipv4Net;

use super::namespace::{Node, TestbedError};
use crate::host::netlink::{Netlink, NetlinkError, Route};
use crate::sys::netns::Namespace;

/// The external interface of every host.
pub const UNDERLAY_DEVICE: &str = "eth0";
/// MTU of the underlay in bytes.
pub(super) const UNDERLAY_MTU: u32 = 1500;
pub(super) const UNDERLAY_PREFIX: u8 = 24;
/// The bridge on a host that its containers are attached to.
const CONTAINER_BRIDGE: &str = "cni0";
/// `RTPROT_BOOT`: what `ip route add`, and flannel, give a route.
pub(super) const PROTOCOL_BOOT: u8 = 3;

pub(super) enum DefaultRoute {
    None,
    OnLink,
    Via(Ipv4Addr),
}

/// Gives a device its address, sets it up, and adds the default route.
pub(super) async fn bring_up(
    netlink: &Netlink,
    device: &str,
    address: Ipv4Net,
    mtu: u32,
    default: DefaultRoute,
) -> Result<(), NetlinkError> {
    let gateway = match default {
        DefaultRoute::None => None,
        DefaultRoute::OnLink => Some(None),
        DefaultRoute::Via(gateway) => Some(Some(gateway)),
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

/// A host of the underlay. It forwards, and its default route leads over `eth0`.
#[derive(Debug, Clone)]
pub struct Host {
    node: Node,
    address: Ipv4Addr,
}

impl Host {
    pub(super) fn start(
        node: Node,
        address: Ipv4Addr,
        gateway: Option<Ipv4Addr>,
    ) -> Result<Self, TestbedError> {
        let net = net(address, UNDERLAY_PREFIX)?;
        let default = gateway.map_or(DefaultRoute::OnLink, DefaultRoute::Via);
        node.netlink(async |netlink| {
            bring_up(netlink, UNDERLAY_DEVICE, net, UNDERLAY_MTU, default).await
        })?;
        node.sysctl("net/ipv4/ip_forward", "1")?;
        Ok(Self { node, address })
    }

    /// Namespace and name.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Network namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        self.node.namespace()
    }

    /// Address on the underlay.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Adds a container with the next free address of `subnet`, the leased subnet of this host.
    /// The first one also creates the bridge, with the subnet's first address, as Docker does
    /// with `--bip`.
    ///
    /// # Errors
    ///
    /// If the subnet is full, or the kernel refuses.
    pub fn add_container(&self, subnet: Ipv4Net, mtu: u32) -> Result<Container, TestbedError> {
        let mut hosts = subnet.hosts();
        let full =
            || TestbedError::Request(format!("{subnet} has no address left for a container"));
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
            bring_up(netlink, "eth0", own, mtu, DefaultRoute::Via(gateway)).await
        })?;
        Ok(Container {
            node,
            address,
            gateway,
        })
    }
}

/// Creates the bridge unless it exists; returns its index and the number of its containers.
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

pub(super) fn net(address: Ipv4Addr, prefix_len: u8) -> Result<Ipv4Net, TestbedError> {
    Ipv4Net::new(address, prefix_len).map_err(|error| {
        TestbedError::Request(format!("{address}/{prefix_len} is no network: {error}"))
    })
}

/// A container, with one device `eth0` on the host's bridge.
#[derive(Debug, Clone)]
pub struct Container {
    node: Node,
    address: Ipv4Addr,
    gateway: Ipv4Addr,
}

impl Container {
    /// Namespace and name.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Network namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        self.node.namespace()
    }

    /// Address in the overlay.
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

/// Creates a bridge and sets it up; returns its index.
pub(super) async fn create_bridge(
    netlink: &Netlink,
    name: &str,
    mtu: u32,
) -> Result<u32, NetlinkError> {
    netlink.create_bridge(name).await?;
    let bridge = netlink.expect_link(name).await?.index;
    netlink.set_mtu(bridge, mtu).await?;
    netlink.set_up(bridge, true).await?;
    Ok(bridge)
}

pub(super) async fn join_bridge(
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
