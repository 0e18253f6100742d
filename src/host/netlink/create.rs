//! Creates links, for the testbed.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_route::link::{InfoData, InfoVeth, LinkMessage};
use rtnetlink::{LinkBridge, LinkUnspec, LinkVeth, LinkVxlan};

use super::{Netlink, NetlinkError, request};
use crate::wire::{MacAddr, Vni};

/// A kernel vxlan device with the attributes that flannel sets (`newVXLANDevice` in its
/// `pkg/backend/vxlan/device.go`): no group and no remote, so no default entry, and learning
/// off.
#[derive(Debug, Clone)]
pub struct VxlanSettings {
    /// Name, `flannel.<VNI>`.
    pub name: String,
    /// Network identifier.
    pub vni: Vni,
    /// UDP port, here and at the peers.
    pub port: u16,
    /// Source address of outer packets.
    pub local: Ipv4Addr,
    /// Index of the lower link.
    pub device: u32,
    /// MTU in bytes: that of the lower link less 50.
    pub mtu: u32,
    /// MAC address of the device.
    pub mac: MacAddr,
}

impl Netlink {
    /// Creates a veth pair: `name` here, `peer_name` in the namespace `peer_namespace`.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`].
    pub async fn create_veth(
        &self,
        name: &str,
        peer_name: &str,
        peer_namespace: BorrowedFd<'_>,
    ) -> Result<(), NetlinkError> {
        let peer = LinkUnspec::new_with_name(peer_name)
            .setns_by_fd(peer_namespace.as_raw_fd())
            .build();
        let pair = LinkVeth::new(name, peer_name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.create(pair, || format!("create veth pair {name} and {peer_name}"))
            .await
    }

    /// Creates a bridge.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`].
    pub async fn create_bridge(&self, name: &str) -> Result<(), NetlinkError> {
        self.create(LinkBridge::new(name).build(), || {
            format!("create bridge {name}")
        })
        .await
    }

    /// Creates a kernel vxlan device.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`], with `EOPNOTSUPP` if the kernel has no vxlan.
    pub async fn create_vxlan(&self, settings: &VxlanSettings) -> Result<(), NetlinkError> {
        let device = LinkVxlan::new(&settings.name, settings.vni.get())
            .dev(settings.device)
            .local(settings.local)
            .port(settings.port)
            .learning(false)
            .mtu(settings.mtu)
            .address(settings.mac.0.to_vec())
            .build();
        self.create(device, || {
            format!(
                "create kernel vxlan device {} (VNI {}, port {}, local {})",
                settings.name,
                settings.vni.get(),
                settings.port,
                settings.local
            )
        })
        .await
    }

    async fn create(
        &self,
        link: LinkMessage,
        operation: impl FnOnce() -> String,
    ) -> Result<(), NetlinkError> {
        request(self.handle.link().add(link).execute(), operation).await
    }
}
