//! What a kernel vxlan peer on the same machine leaves unfinished.
//!
//! A virtual link (veth, bridge) between two namespaces takes any offload, so the kernel's
//! vxlan hands its packets over as they are: the inner TCP or UDP checksum holds only the
//! pseudo-header sum (`CHECKSUM_PARTIAL`), and a TCP super-packet of up to 64 KiB
//! (`SKB_GSO_UDP_TUNNEL_CSUM`) reaches our socket as one datagram. `udp_unexpected_gso()`
//! of `include/linux/udp.h` lets that through, because it only knows `SKB_GSO_UDP_L4`.
//! Where a wire lies between the peers, the sender's device or stack finishes both, and
//! nothing here applies.
//!
//! The remedy is to say so in the virtio-net header, which puts the packet into the state
//! it had at the peer: nothing is summed or cut until it leaves the machine.

use crate::wire::checksum::{Sum, pseudo_v4};
use crate::wire::ipv4::{PROTOCOL_TCP, PROTOCOL_UDP, Packet};
use crate::wire::vnet_hdr::{self, VnetHdr};
use crate::wire::vxlan::ENCAP_LEN;

const TCP_MIN_HEADER_LEN: usize = 20;
const TCP_FLAGS: usize = 13;
const TCP_CWR: u8 = 0x80;
const UDP_HEADER_LEN: usize = 8;

/// What remains to be done with a packet, and how to tell the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfinished {
    /// The header that leaves the rest to the kernel.
    pub hdr: VnetHdr,
    /// What the checksum field must hold for it: the folded pseudo-header sum.
    pub seed: [u8; 2],
    /// Packets it stands for: more than one for a super-packet.
    pub segments: u32,
}

impl Unfinished {
    /// Whether it must be cut before it fits the overlay.
    #[must_use]
    pub const fn is_super_packet(&self) -> bool {
        self.hdr.is_gso()
    }

    /// Prepares the packet for its header: writes the seed into the checksum field.
    /// `packet` is the one that was examined, from its IP header on.
    pub fn seed(&self, packet: &mut [u8]) {
        self.set_checksum(packet, self.seed);
    }

    /// Finishes the checksum of one ordinary packet, where no header can say it.
    pub fn finish_checksum(&self, packet: &mut [u8]) {
        self.seed(packet);
        let covered = packet.get(usize::from(self.hdr.csum_start)..);
        let sum = Sum::of(covered.unwrap_or_default());
        let sum = match self.hdr.csum_offset {
            vnet_hdr::CSUM_OFFSET_UDP => sum.finish_udp(),
            _ => sum.finish(),
        };
        self.set_checksum(packet, sum);
    }

    fn set_checksum(&self, packet: &mut [u8], value: [u8; 2]) {
        let at = usize::from(self.hdr.csum_start) + usize::from(self.hdr.csum_offset);
        if let Some(field) = packet.get_mut(at..at + 2) {
            field.copy_from_slice(&value);
        }
    }
}

/// Examines an inner packet. `None`: complete as it lies, or nothing that we can tell;
/// the kernel verifies it.
///
/// `mtu` is the overlay device's. `inner_segment` is the segment size that came with a
/// datagram which is one frame nevertheless (see [`is_flat`]).
///
/// A complete checksum looks like a pseudo-header sum once in 65,536 packets; its packet
/// then only goes without a second verification, behind that of the outer UDP checksum.
#[must_use]
#[inline]
pub fn examine(packet: &Packet<'_>, mtu: u16, inner_segment: Option<usize>) -> Option<Unfinished> {
    // The kernel sums before it fragments (`skb_checksum_help` in `ip_do_fragment`).
    if packet.is_fragment() {
        return None;
    }
    let transport = Transport::of(packet)?;
    let segment = transport.segment_len(packet, mtu, inner_segment);
    let partial = transport.check == transport.seed;
    // A long packet with a true checksum comes from a peer with a larger MTU: it is cut as
    // well, for the overlay here does not take it. A wrong checksum stays for the kernel
    // to find.
    let usable = partial || (segment.is_some() && transport.verifies(packet));
    usable.then(|| transport.unfinished(packet, segment))
}

/// Whether a datagram with a segment size is one frame and not joined ones: the kernel
/// passes on the segment size of an inner UDP super-packet as if it were the outer one's.
#[must_use]
pub fn is_flat(datagram: &[u8], segment: usize) -> bool {
    let inner = datagram.get(ENCAP_LEN..).map(Packet::new_checked);
    let Some(Ok(packet)) = inner else {
        return false;
    };
    let frame_len = ENCAP_LEN + packet.total_len();
    frame_len > segment && frame_len == datagram.len()
}

/// The parts of a TCP or UDP header that matter here.
struct Transport {
    protocol: u8,
    header_len: usize,
    csum_offset: u16,
    check: [u8; 2],
    seed: [u8; 2],
    congestion_window_reduced: bool,
}

impl Transport {
    #[inline]
    fn of(packet: &Packet<'_>) -> Option<Self> {
        let bytes = packet.payload();
        let protocol = packet.protocol();
        let (header_len, csum_offset) = match protocol {
            PROTOCOL_TCP => (tcp_header_len(bytes)?, vnet_hdr::CSUM_OFFSET_TCP),
            PROTOCOL_UDP => (UDP_HEADER_LEN, vnet_hdr::CSUM_OFFSET_UDP),
            _ => return None,
        };
        let header = bytes.get(..header_len)?;
        let check = *header.get(usize::from(csum_offset)..)?.first_chunk()?;
        if protocol == PROTOCOL_UDP && (check == [0, 0] || !udp_len_is(header, bytes.len())) {
            return None;
        }
        let [source, destination] = [packet.source(), packet.destination()];
        let len = u16::try_from(bytes.len()).ok()?;
        let pseudo = pseudo_v4(source.octets(), destination.octets(), protocol, len);
        Some(Self {
            protocol,
            header_len,
            csum_offset,
            check,
            seed: pseudo.fold(),
            congestion_window_reduced: protocol == PROTOCOL_TCP
                && header.get(TCP_FLAGS)? & TCP_CWR != 0,
        })
    }

    /// Payload bytes of each segment, where the packet must be cut.
    fn segment_len(&self, packet: &Packet<'_>, mtu: u16, inner: Option<usize>) -> Option<u16> {
        let headers = packet.header_len() + self.header_len;
        let payload = packet.total_len() - headers;
        let segment = match (self.protocol, inner) {
            // The peer's segment size is not known; both ends having the same MTU, it is this.
            (PROTOCOL_TCP, None) if packet.total_len() > usize::from(mtu) => {
                usize::from(mtu).checked_sub(headers)?
            }
            (PROTOCOL_UDP, Some(segment)) => segment,
            _ => return None,
        };
        (1..payload)
            .contains(&segment)
            .then(|| u16::try_from(segment).ok())?
    }

    fn verifies(&self, packet: &Packet<'_>) -> bool {
        let seed = u16::from_be_bytes(self.seed);
        (Sum::of_u16(seed) + Sum::of(packet.payload())).is_valid()
    }

    fn unfinished(&self, packet: &Packet<'_>, segment: Option<u16>) -> Unfinished {
        // At most 60 bytes each.
        let headers = (packet.header_len() + self.header_len) as u16;
        let mut hdr = VnetHdr {
            flags: vnet_hdr::F_NEEDS_CSUM,
            csum_start: packet.header_len() as u16,
            csum_offset: self.csum_offset,
            ..VnetHdr::default()
        };
        let mut segments = 1;
        if let Some(gso_size) = segment {
            let payload = packet.total_len() - usize::from(headers);
            segments = payload.div_ceil(usize::from(gso_size)) as u32;
            hdr.gso_size = gso_size;
            hdr.hdr_len = headers;
            hdr.gso_type = match self.protocol {
                PROTOCOL_UDP => vnet_hdr::GSO_UDP_L4,
                // Only the first segment may then carry CWR (RFC 3168 section 6.1.2).
                _ if self.congestion_window_reduced => vnet_hdr::GSO_TCPV4 | vnet_hdr::GSO_ECN,
                _ => vnet_hdr::GSO_TCPV4,
            };
        }
        Unfinished {
            hdr,
            seed: self.seed,
            segments,
        }
    }
}

fn tcp_header_len(bytes: &[u8]) -> Option<usize> {
    let len = usize::from(bytes.get(12)? >> 4) * 4;
    (len >= TCP_MIN_HEADER_LEN).then_some(len)
}

fn udp_len_is(header: &[u8], len: usize) -> bool {
    let field = header.get(4..).and_then(<[u8]>::first_chunk);
    field.is_some_and(|field| usize::from(u16::from_be_bytes(*field)) == len)
}

#[cfg(test)]
mod tests;
