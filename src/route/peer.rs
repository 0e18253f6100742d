//! A remote VTEP, as the packet loop needs it.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::wire::MacAddr;

/// The destination of packets for a subnet: 16 bytes, so that four share a cache line and
/// 65,536 fit into 1 MiB.
///
/// The 22 bytes before the inner packet are [`crate::wire::vxlan::EncapTemplate`] with this
/// MAC filled in. Storing them here would more than double the table and gain nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteVtep {
    address: Ipv4Addr,
    /// 0 marks a vacant slot of the table.
    port: u16,
    vtep_mac: MacAddr,
    id: PeerId,
}

/// A small number for a peer: the index of its counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerId(pub u32);

impl RemoteVtep {
    pub(super) const VACANT: Self = Self {
        address: Ipv4Addr::UNSPECIFIED,
        port: 0,
        vtep_mac: MacAddr([0; 6]),
        id: PeerId(0),
    };

    /// `None` if the port is 0.
    #[must_use]
    pub fn new(endpoint: SocketAddrV4, vtep_mac: MacAddr, id: PeerId) -> Option<Self> {
        (endpoint.port() != 0).then_some(Self {
            address: *endpoint.ip(),
            port: endpoint.port(),
            vtep_mac,
            id,
        })
    }

    /// Destination of the outer packets.
    #[must_use]
    #[inline]
    pub const fn endpoint(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, self.port)
    }

    /// Destination of the inner Ethernet header.
    #[must_use]
    #[inline]
    pub const fn vtep_mac(&self) -> MacAddr {
        self.vtep_mac
    }

    /// Index of its counters.
    #[must_use]
    #[inline]
    pub const fn id(&self) -> PeerId {
        self.id
    }

    #[inline]
    pub(super) const fn is_vacant(&self) -> bool {
        self.port == 0
    }
}

const _: () = assert!(size_of::<RemoteVtep>() == 16);
