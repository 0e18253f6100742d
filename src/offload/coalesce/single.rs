//! Packets that a kernel peer never completed.
//!
//! A kernel vxlan peer on the same machine (veth: kind, tests) hands over what would be
//! finished only by a wire: packets whose checksum is a mere pseudo-header sum, and whole
//! super-packets in one datagram (`udp_unexpected_gso` does not catch
//! `SKB_GSO_UDP_TUNNEL`). Both are known by that sum. An honest checksum equals it once in
//! 65536 packets, which does no harm: the kernel then takes the packet as verified.

use crate::offload::ip::{self, IpPacket};
use crate::wire::checksum::Sum;
use crate::wire::udp;
use crate::wire::vnet_hdr::{
    CSUM_OFFSET_TCP, CSUM_OFFSET_UDP, F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VnetHdr,
};

/// The vnet header to write a single inner packet with.
///
/// All zero for a packet that is complete: the kernel verifies it. `NEEDS_CSUM` if its
/// checksum is only the pseudo-header sum, and a TCP GSO type beside it if the packet also
/// exceeds `tun_mtu` bytes; then the segment size is what fills that MTU, since the true
/// one is not handed over.
#[must_use]
pub fn classify_partial(packet: &[u8], tun_mtu: usize) -> VnetHdr {
    let Some(partial) = Partial::find(packet) else {
        return VnetHdr::default();
    };
    let room = tun_mtu.saturating_sub(partial.header_len);
    let is_giant = partial.packet.bytes.len() > tun_mtu && room > 0;
    if !is_giant || partial.packet.protocol != ip::TCP {
        return partial.vnet();
    }
    let gso_type = if partial.packet.v6 {
        GSO_TCPV6
    } else {
        GSO_TCPV4
    };
    partial.vnet_gso(gso_type, room.min(usize::from(u16::MAX)) as u16)
}

/// The vnet header for a datagram that came with a `UDP_GRO` segment size although it is
/// one frame: a peer's UDP super-packet, whose inner size of `segment` bytes the kernel
/// reports as if it were the outer one.
///
/// Callers have found that the inner packet, which is `packet` here, fills the datagram.
/// `None` if the packet is none of this kind: complete, or not UDP.
#[must_use]
pub fn classify_unsegmented_udp(packet: &[u8], segment: u16) -> Option<VnetHdr> {
    let partial = Partial::find(packet)?;
    let payload = partial.packet.bytes.len().checked_sub(partial.header_len)?;
    let is_super = partial.packet.protocol == ip::UDP && segment > 0;
    (is_super && payload > usize::from(segment)).then(|| partial.vnet_gso(GSO_UDP_L4, segment))
}

/// A packet whose checksum field holds the folded pseudo-header sum.
struct Partial<'a> {
    packet: IpPacket<'a>,
    /// Bytes of IP and transport header.
    header_len: usize,
    csum_offset: u16,
}

impl<'a> Partial<'a> {
    #[inline]
    fn find(bytes: &'a [u8]) -> Option<Self> {
        let packet = IpPacket::parse(bytes).ok()?;
        if packet.routed {
            return None;
        }
        let (check, len, csum_offset) = if packet.protocol == ip::TCP {
            let tcp = packet.tcp()?;
            (tcp.checksum(), tcp.header_len(), CSUM_OFFSET_TCP)
        } else {
            let udp = packet.udp().filter(|udp| udp.checksum() != [0, 0])?;
            (udp.checksum(), udp::HEADER_LEN, CSUM_OFFSET_UDP)
        };
        // At most 65535: IPv4 packets end there, as do IPv6 payloads.
        let covered = packet.transport_bytes().len() as u16;
        let seed = (packet.pseudo_sum() + Sum::of_u16(covered)).fold();
        let header_len = packet.transport + len;
        (check == seed).then_some(Self {
            packet,
            header_len,
            csum_offset,
        })
    }

    fn vnet(&self) -> VnetHdr {
        VnetHdr {
            flags: F_NEEDS_CSUM,
            hdr_len: self.header_len as u16,
            csum_start: self.packet.transport as u16,
            csum_offset: self.csum_offset,
            ..VnetHdr::default()
        }
    }

    fn vnet_gso(&self, gso_type: u8, gso_size: u16) -> VnetHdr {
        VnetHdr {
            gso_type,
            gso_size,
            ..self.vnet()
        }
    }
}
