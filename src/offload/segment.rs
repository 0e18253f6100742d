//! One super-packet into the segments of its flow.
//!
//! A TUN with TSO and USO hands out packets of up to 64 KiB, which stand for a run of
//! segments with `gso_size` payload bytes each. A [`SegmentPlan`] writes the header of each
//! segment into space of the caller and names the range of the super-packet that is its
//! payload, as the kernel's `tcp_gso_segment`, `__udp_gso_segment` and
//! `inet_gso_segment` would have made them.

use std::ops::Range;

use super::ip::{self, IpPacket, NotIp};
use crate::wire::checksum::{Checksummer, Sum};
use crate::wire::ipv6::{self, Ipv6HeaderMut};
use crate::wire::tcp::{Flags, TcpHeaderMut};
use crate::wire::udp::{self, UdpHeaderMut};
use crate::wire::vnet_hdr::{
    CSUM_OFFSET_TCP, CSUM_OFFSET_UDP, GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VnetHdr,
};

/// Why a packet off the TUN cannot be segmented. None of these comes from a sound kernel;
/// the packet is to be dropped and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The first nibble is neither 4 nor 6.
    #[error("super-packet has IP version {0}; dropped, as only 4 and 6 can be segmented")]
    Version(u8),
    /// A header, or what a length field announces, exceeds the bytes at hand.
    #[error("super-packet of {0} bytes is shorter than its headers say; dropped")]
    Truncated(usize),
    /// The packet is no GSO packet, or of a type that was never asked for (UFO, tunnels).
    #[error("gso_type {0:#04x} was not asked for with TUNSETOFFLOAD; packet dropped")]
    GsoType(u8),
    /// The vnet header and the IP header disagree on version or protocol.
    #[error(
        "gso_type {gso_type:#04x} does not fit IPv{version} with protocol {protocol}; packet dropped"
    )]
    Mismatch {
        /// `gso_type` of the vnet header.
        gso_type: u8,
        /// IP version of the packet.
        version: u8,
        /// Protocol behind the IP headers.
        protocol: u8,
    },
    /// `gso_size` is zero.
    #[error("gso_size is 0 in a GSO packet of {0} bytes; dropped")]
    GsoSize(usize),
    /// The checksum's place is not where the transport header is.
    #[error("checksum at {start}+{offset}, transport header at {transport}; packet dropped")]
    ChecksumPlace {
        /// `csum_start` in bytes.
        start: u16,
        /// `csum_offset` in bytes.
        offset: u16,
        /// Where the transport header begins, or the packet's length if only that matters.
        transport: usize,
    },
    /// A fragment, or a packet with an IPv6 routing header, claims to be a super-packet.
    #[error("super-packet is a fragment or source-routed; dropped")]
    Unsegmentable,
    /// The caller asked for a segment that is not there.
    #[error("segment {index} of {count} asked for")]
    Index {
        /// What was asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// The caller's space is too small.
    #[error("{have} bytes of header space, {need} needed")]
    HeaderSpace {
        /// Bytes needed.
        need: usize,
        /// Bytes given.
        have: usize,
    },
}

/// What differs between the transport headers of the segments.
#[derive(Clone, Copy, Debug)]
enum Transport {
    /// First sequence number, and byte 12 and flags of the header.
    Tcp {
        seq: u32,
        offset_byte: u8,
        flags: Flags,
    },
    /// Datagrams differ in length and checksum alone.
    Udp,
}

/// How a super-packet comes apart. Borrows the packet; allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct SegmentPlan<'a> {
    packet: IpPacket<'a>,
    transport: Transport,
    header_len: usize,
    gso_size: usize,
    count: usize,
    /// Sum of the IPv4 header without the fields that differ.
    v4_rest: Sum,
    v4_id: u16,
    /// Sum of pseudo-header and transport header without the fields that differ.
    transport_rest: Sum,
}

impl<'a> SegmentPlan<'a> {
    /// Checks `packet`, as read behind `vnet`, and computes what all segments share.
    ///
    /// `packet` begins with the IP header. `hdr_len` is not used: for forwarded packets
    /// it covers more than headers (`skb_headlen`).
    ///
    /// # Errors
    /// If the packet is not a GSO packet of TCP or UDP (callers ask [`VnetHdr::is_gso`]
    /// first), or contradicts itself or its vnet header.
    pub fn new(vnet: &VnetHdr, packet: &'a [u8]) -> Result<Self, SegmentError> {
        let packet = IpPacket::parse(packet).map_err(|error| match error {
            NotIp::Version(version) => SegmentError::Version(version),
            NotIp::Length => SegmentError::Truncated(packet.len()),
        })?;
        check_type(vnet, &packet)?;
        check_place(vnet, &packet)?;
        if vnet.gso_size == 0 {
            return Err(SegmentError::GsoSize(packet.bytes.len()));
        }
        let truncated = SegmentError::Truncated(packet.bytes.len());
        let (transport, transport_len, rest) = if packet.protocol == ip::TCP {
            tcp_parts(&packet).ok_or(truncated)?
        } else {
            udp_parts(&packet).ok_or(truncated)?
        };
        let header_len = packet.transport + transport_len;
        let payload_len = packet.bytes.len().saturating_sub(header_len);
        let gso_size = usize::from(vnet.gso_size);
        let headers = packet.ip_headers();
        let (v4_rest, v4_id) = match headers {
            [_, _, _, _, high, low, ..] if !packet.v6 => {
                (ip::v4_rest_sum(headers), u16::from_be_bytes([*high, *low]))
            }
            _ => (Sum::ZERO, 0),
        };
        Ok(Self {
            packet,
            transport,
            header_len,
            gso_size,
            count: payload_len.div_ceil(gso_size).max(1),
            v4_rest,
            v4_id,
            transport_rest: packet.pseudo_sum() + rest,
        })
    }

    /// How many segments there are, at least 1. A small `gso_size` makes this large (65495
    /// at worst), so callers with bounded space go through it in parts.
    #[inline]
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Bytes of the header block of each segment: IP and transport header.
    #[inline]
    #[must_use]
    pub const fn header_len(&self) -> usize {
        self.header_len
    }

    /// Bytes of the IP packet of segment `index`, headers included; all but the last are
    /// equal.
    #[inline]
    #[must_use]
    pub fn segment_len(&self, index: usize) -> usize {
        self.header_len + self.payload(index).len()
    }

    /// The range of the super-packet which is the payload of segment `index`; empty beyond
    /// the last.
    #[inline]
    #[must_use]
    pub fn payload(&self, index: usize) -> Range<usize> {
        let end = self.packet.bytes.len();
        let start = index
            .saturating_mul(self.gso_size)
            .saturating_add(self.header_len)
            .min(end);
        start..start.saturating_add(self.gso_size).min(end)
    }

    /// Writes the headers of segment `index` to the first [`Self::header_len`] bytes of
    /// `out` and returns the range of the super-packet that follows them on the wire.
    ///
    /// Lengths, IPv4 identification (counting up from the super-packet's), sequence
    /// numbers and both checksums are the segment's own; FIN and PSH stay on the last
    /// segment, CWR on the first.
    ///
    /// # Errors
    /// [`SegmentError::Index`] and [`SegmentError::HeaderSpace`]: mistakes of the caller.
    pub fn write_header(
        &self,
        index: usize,
        out: &mut [u8],
        csum: Checksummer,
    ) -> Result<Range<usize>, SegmentError> {
        if index >= self.count {
            return Err(SegmentError::Index {
                index,
                count: self.count,
            });
        }
        let space = SegmentError::HeaderSpace {
            need: self.header_len,
            have: out.len(),
        };
        let out = out.get_mut(..self.header_len).ok_or(space)?;
        let truncated = SegmentError::Truncated(self.packet.bytes.len());
        let source = self.packet.bytes.get(..self.header_len).ok_or(truncated)?;
        out.copy_from_slice(source);
        let payload = self.payload(index);
        let sum = csum.sum(self.packet.bytes.get(payload.clone()).ok_or(truncated)?);
        let (ip_header, transport) = out.split_at_mut(self.packet.transport);
        self.patch_ip(index, ip_header, payload.len());
        self.patch_transport(index, transport, payload.len(), sum);
        Ok(payload)
    }

    #[inline]
    fn patch_ip(&self, index: usize, header: &mut [u8], payload_len: usize) {
        // Cannot be cut short: no segment is longer than the super-packet, which its own
        // 16-bit length covers.
        let len = (self.header_len + payload_len) as u16;
        if self.packet.v6 {
            if let Some(mut header) = Ipv6HeaderMut::parse(header) {
                header.set_payload_len((self.header_len + payload_len - ipv6::HEADER_LEN) as u16);
            }
        } else if let Some(header) = header.first_chunk_mut() {
            ip::patch_v4(
                header,
                self.v4_rest,
                len,
                self.v4_id.wrapping_add(index as u16),
            );
        }
    }

    #[inline]
    fn patch_transport(&self, index: usize, header: &mut [u8], payload_len: usize, payload: Sum) {
        let len = header.len() + payload_len;
        let sum = self.transport_rest + Sum::of_u16(len as u16) + payload;
        match self.transport {
            Transport::Tcp {
                seq,
                offset_byte,
                flags,
            } => {
                let seq = seq.wrapping_add((index * self.gso_size) as u32);
                let flags = self.flags(index, flags);
                let sum = sum
                    + Sum::of_u32(seq)
                    + Sum::of_u16(u16::from_be_bytes([offset_byte, flags.0]));
                if let Some(mut header) = TcpHeaderMut::parse(header) {
                    header.set_seq(seq);
                    header.set_flags(flags);
                    header.set_checksum(sum.finish());
                }
            }
            Transport::Udp => {
                let sum = sum + Sum::of_u16(len as u16);
                if let Some(mut header) = UdpHeaderMut::parse(header) {
                    header.set_len(len as u16);
                    header.set_checksum(sum.finish_udp());
                }
            }
        }
    }

    #[inline]
    fn flags(&self, index: usize, flags: Flags) -> Flags {
        let mut flags = flags;
        if index + 1 < self.count {
            flags = flags.without(Flags::FIN.with(Flags::PSH));
        }
        if index > 0 {
            flags = flags.without(Flags::CWR);
        }
        flags
    }
}

/// Whether version and protocol are those that `gso_type` names.
fn check_type(vnet: &VnetHdr, packet: &IpPacket<'_>) -> Result<(), SegmentError> {
    let fits = match vnet.gso_type & !GSO_ECN {
        GSO_TCPV4 => !packet.v6 && packet.protocol == ip::TCP,
        GSO_TCPV6 => packet.v6 && packet.protocol == ip::TCP,
        GSO_UDP_L4 if vnet.gso_type & GSO_ECN == 0 => packet.protocol == ip::UDP,
        _ => return Err(SegmentError::GsoType(vnet.gso_type)),
    };
    if !fits {
        return Err(SegmentError::Mismatch {
            gso_type: vnet.gso_type,
            version: if packet.v6 { 6 } else { 4 },
            protocol: packet.protocol,
        });
    }
    if packet.fragment || packet.routed {
        return Err(SegmentError::Unsegmentable);
    }
    Ok(())
}

/// Whether `csum_start` and `csum_offset` point where the IP headers say. The seed behind
/// them is not used, so that its absence is no error.
fn check_place(vnet: &VnetHdr, packet: &IpPacket<'_>) -> Result<(), SegmentError> {
    let offset = if packet.protocol == ip::TCP {
        CSUM_OFFSET_TCP
    } else {
        CSUM_OFFSET_UDP
    };
    if vnet.needs_csum()
        && (usize::from(vnet.csum_start) != packet.transport || vnet.csum_offset != offset)
    {
        return Err(SegmentError::ChecksumPlace {
            start: vnet.csum_start,
            offset: vnet.csum_offset,
            transport: packet.transport,
        });
    }
    Ok(())
}

/// Kind, header length, and the header's sum without sequence number, byte 12, flags and
/// checksum.
fn tcp_parts(packet: &IpPacket<'_>) -> Option<(Transport, usize, Sum)> {
    let tcp = packet.tcp()?;
    let bytes = packet.transport_bytes();
    let len = tcp.header_len();
    let rest = Sum::of(bytes.get(..4)?)
        + Sum::of(bytes.get(8..12)?)
        + Sum::of(bytes.get(14..16)?)
        + Sum::of(bytes.get(18..len)?);
    let transport = Transport::Tcp {
        seq: tcp.seq(),
        offset_byte: *bytes.get(12)?,
        flags: tcp.flags(),
    };
    Some((transport, len, rest))
}

/// Kind, header length, and the sum of the ports.
fn udp_parts(packet: &IpPacket<'_>) -> Option<(Transport, usize, Sum)> {
    let bytes = packet.transport_bytes();
    let header = bytes.get(..udp::HEADER_LEN)?;
    Some((Transport::Udp, udp::HEADER_LEN, Sum::of(header.get(..4)?)))
}

/// Completes in place the checksum of a packet that is no GSO packet but whose vnet
/// header says `NEEDS_CSUM`: its field holds the folded pseudo-header sum, which is
/// summed along. Does nothing without that flag.
///
/// # Errors
/// [`SegmentError::ChecksumPlace`] if the field is outside of `packet`.
pub fn finish_checksum(
    vnet: &VnetHdr,
    packet: &mut [u8],
    csum: Checksummer,
) -> Result<(), SegmentError> {
    if !vnet.needs_csum() {
        return Ok(());
    }
    let outside = SegmentError::ChecksumPlace {
        start: vnet.csum_start,
        offset: vnet.csum_offset,
        transport: packet.len(),
    };
    let covered = packet
        .get_mut(usize::from(vnet.csum_start)..)
        .ok_or(outside)?;
    let sum = csum.sum(covered);
    let at = usize::from(vnet.csum_offset);
    let field = covered.get_mut(at..at + 2).ok_or(outside)?;
    let check = if vnet.csum_offset == CSUM_OFFSET_UDP {
        sum.finish_udp()
    } else {
        sum.finish()
    };
    field.copy_from_slice(&check);
    Ok(())
}

#[cfg(test)]
mod tests;
