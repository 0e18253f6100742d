//! Neighbours and forwarding entries, as a kernel vxlan device needs them.

use std::net::Ipv4Addr;

use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};

use super::{Netlink, NetlinkError};
use crate::wire::MacAddr;

impl Netlink {
    /// Sets the link-layer address of a neighbour for good:
    /// `ip neigh replace ADDRESS lladdr MAC dev LINK nud permanent`.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`].
    pub async fn set_neighbour(
        &self,
        ifindex: u32,
        address: Ipv4Addr,
        mac: MacAddr,
    ) -> Result<(), NetlinkError> {
        let request = self
            .handle
            .neighbours()
            .add(ifindex, address.into())
            .link_layer_address(&mac.0)
            .state(NeighbourState::Permanent)
            .replace()
            .execute();
        request.await.map_err(|error| {
            let operation = format!("set neighbour {address} on link {ifindex} to {mac}");
            NetlinkError::request(operation, error)
        })
    }

    /// Says to which host a vxlan device sends frames for `mac`:
    /// `bridge fdb replace MAC dst HOST dev LINK self permanent`.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`].
    pub async fn set_fdb(
        &self,
        ifindex: u32,
        mac: MacAddr,
        host: Ipv4Addr,
    ) -> Result<(), NetlinkError> {
        let request = self
            .handle
            .neighbours()
            .add_bridge(ifindex, &mac.0)
            .destination(host.into())
            .state(NeighbourState::Permanent)
            .flags(NeighbourFlags::Own)
            .replace()
            .execute();
        request.await.map_err(|error| {
            let operation = format!("send frames for {mac} on link {ifindex} to {host}");
            NetlinkError::request(operation, error)
        })
    }
}
