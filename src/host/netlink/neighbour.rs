//! Neighbours and forwarding entries of a kernel vxlan device.

use std::net::Ipv4Addr;

use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};

use super::{Netlink, NetlinkError, request};
use crate::wire::MacAddr;

impl Netlink {
    /// Adds a permanent neighbour:
    /// `ip neigh replace ADDRESS lladdr MAC dev LINK nud permanent`.
    pub(crate) async fn set_neighbour(
        &self,
        ifindex: u32,
        address: Ipv4Addr,
        mac: MacAddr,
    ) -> Result<(), NetlinkError> {
        let neighbour = self.handle.neighbours().add(ifindex, address.into());
        let neighbour = neighbour
            .link_layer_address(&mac.0)
            .state(NeighbourState::Permanent)
            .replace();
        request(neighbour.execute(), || {
            format!("set neighbour {address} on link {ifindex} to {mac}")
        })
        .await
    }

    /// Adds a forwarding entry, the host to which a vxlan device sends frames for `mac`:
    /// `bridge fdb replace MAC dst HOST dev LINK self permanent`.
    pub(crate) async fn set_fdb(
        &self,
        ifindex: u32,
        mac: MacAddr,
        host: Ipv4Addr,
    ) -> Result<(), NetlinkError> {
        let entry = self.handle.neighbours().add_bridge(ifindex, &mac.0);
        let entry = entry
            .destination(host.into())
            .state(NeighbourState::Permanent)
            .flags(NeighbourFlags::Own)
            .replace();
        request(entry.execute(), || {
            format!("send frames for {mac} on link {ifindex} to {host}")
        })
        .await
    }
}
