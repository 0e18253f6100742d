//! The kernel's own vxlan device, set up as flannel does, to interoperate and compare with.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::host::{Host, PROTOCOL_BOOT, UNDERLAY_DEVICE};
use super::namespace::{Node, TestbedError};
use crate::host::netlink::{Netlink, NetlinkError, Route, VxlanSettings};
use crate::wire::{MacAddr, Vni};

/// Outer IPv4, UDP, VXLAN and inner Ethernet headers, by which flannel lowers the MTU.
const OVERHEAD: u32 = 50;

/// A `flannel.<VNI>` of kind vxlan on a host.
#[derive(Debug, Clone)]
pub struct KernelVxlan {
    node: Node,
    ifindex: u32,
    mac: MacAddr,
}

impl KernelVxlan {
    /// Creates the device on `host` for the leased `subnet`, with the host's underlay address as
    /// the source of its tunnels.
    ///
    /// # Errors
    ///
    /// If the kernel has no vxlan (see [`kernel_has_vxlan`]), or the name or port is taken.
    pub fn start(
        host: &Host,
        vni: Vni,
        port: u16,
        subnet: Ipv4Net,
        mac: MacAddr,
    ) -> Result<Self, TestbedError> {
        let local = host.address();
        let ifindex = host.node().netlink(async |netlink| {
            let below = netlink.expect_link(UNDERLAY_DEVICE).await?;
            let settings = VxlanSettings {
                name: format!("flannel.{}", vni.get()),
                vni,
                port,
                local,
                device: below.index,
                mtu: below.mtu.saturating_sub(OVERHEAD),
                mac,
            };
            create(netlink, &settings, subnet.network()).await
        })?;
        Ok(Self {
            node: host.node().clone(),
            ifindex,
            mac,
        })
    }

    /// Adds the neighbour, the forwarding entry and the route for a peer's `subnet`, in
    /// flannel's order.
    ///
    /// # Errors
    ///
    /// If the kernel refuses one of them.
    pub fn add_peer(
        &self,
        subnet: Ipv4Net,
        public_ip: Ipv4Addr,
        mac: MacAddr,
    ) -> Result<(), TestbedError> {
        let ifindex = self.ifindex;
        let next_hop = subnet.network();
        self.node.netlink(async |netlink| {
            netlink.set_neighbour(ifindex, next_hop, mac).await?;
            netlink.set_fdb(ifindex, mac, public_ip).await?;
            let route = Route {
                onlink: true,
                protocol: PROTOCOL_BOOT,
                ..Route::ours(subnet, Some(next_hop), ifindex)
            };
            netlink.replace_route(&route).await
        })
    }

    /// The MAC address of the device, to be published as `VtepMAC`.
    #[must_use]
    pub fn mac(&self) -> MacAddr {
        self.mac
    }
}

async fn create(
    netlink: &Netlink,
    settings: &VxlanSettings,
    address: Ipv4Addr,
) -> Result<u32, NetlinkError> {
    netlink.create_vxlan(settings).await?;
    let index = netlink.expect_link(&settings.name).await?.index;
    netlink.add_address(index, address, 32).await?;
    netlink.set_up(index, true).await?;
    Ok(index)
}

/// Whether this kernel has vxlan devices, built in or as a module.
///
/// # Errors
///
/// Why not.
pub fn kernel_has_vxlan() -> Result<(), String> {
    let probe = || {
        let node = Node::new("vxlan probe")?;
        node.netlink(async |netlink| {
            // No traffic flows here, so any lower device will do.
            let below = netlink.expect_link("lo").await?;
            let settings = VxlanSettings {
                name: "probe".into(),
                vni: Vni::DEFAULT,
                port: 8472,
                local: Ipv4Addr::LOCALHOST,
                device: below.index,
                mtu: 1450,
                mac: MacAddr::locally_administered([0; 6]),
            };
            netlink.create_vxlan(&settings).await
        })
    };
    probe().map_err(|error: TestbedError| format!("no kernel vxlan here: {error}"))
}
