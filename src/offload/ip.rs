//! What segmenting and coalescing need to know of an IP header of either version.

use crate::wire::checksum::Sum;
use crate::wire::ipv6::{self, Ipv6Packet};
use crate::wire::tcp::TcpSegment;
use crate::wire::udp::UdpDatagram;

/// Protocol number of TCP.
pub(super) const TCP: u8 = 6;
/// Protocol number of UDP.
pub(super) const UDP: u8 = 17;

/// Bytes of an IPv4 header without options.
pub(super) const V4_HEADER_LEN: usize = 20;

/// The fixed part of an IPv4 header.
pub(super) type V4Header = [u8; V4_HEADER_LEN];

/// An IP packet, cut to the length its header tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct IpPacket<'a> {
    /// The packet, without bytes behind its end.
    pub bytes: &'a [u8],
    /// Whether it is IPv6.
    pub v6: bool,
    /// Protocol of the transport header.
    pub protocol: u8,
    /// Bytes from the start to the transport header.
    pub transport: usize,
    /// Whether it is a fragment, be it the first.
    pub fragment: bool,
    /// Whether an IPv6 routing header changes what the pseudo-header counts.
    pub routed: bool,
}

/// Why bytes are no IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotIp {
    /// The version is neither 4 nor 6.
    Version(u8),
    /// The header, an extension header, or what the header's length announces does not fit.
    Length,
}

impl<'a> IpPacket<'a> {
    /// Reads the IP headers at the front of `bytes`.
    #[inline]
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, NotIp> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(bytes).ok_or(NotIp::Length),
            Some(6) => Self::parse_v6(bytes).ok_or(NotIp::Length),
            Some(other) => Err(NotIp::Version(other)),
            None => Err(NotIp::Length),
        }
    }

    #[inline]
    fn parse_v4(bytes: &'a [u8]) -> Option<Self> {
        let header: &V4Header = bytes.first_chunk()?;
        let transport = usize::from(header[0] & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if transport < V4_HEADER_LEN || total < transport {
            return None;
        }
        Some(Self {
            bytes: bytes.get(..total)?,
            v6: false,
            protocol: header[9],
            transport,
            fragment: header[6] & 0x3f != 0 || header[7] != 0,
            routed: false,
        })
    }

    #[inline]
    fn parse_v6(bytes: &'a [u8]) -> Option<Self> {
        let packet = Ipv6Packet::parse(bytes)?;
        let transport = packet.transport()?;
        Some(Self {
            bytes: bytes.get(..packet.total_len())?,
            v6: true,
            protocol: transport.protocol,
            transport: transport.offset,
            fragment: transport.fragment.is_some(),
            routed: transport.routed,
        })
    }

    /// The bytes of the IP headers.
    #[inline]
    pub(super) fn ip_headers(&self) -> &'a [u8] {
        self.bytes.get(..self.transport).unwrap_or_default()
    }

    /// Transport header and payload.
    #[inline]
    pub(super) fn transport_bytes(&self) -> &'a [u8] {
        self.bytes.get(self.transport..).unwrap_or_default()
    }

    /// Source and destination address as they lie: 8 bytes, or 32 of IPv6.
    #[inline]
    pub(super) fn addresses(&self) -> &'a [u8] {
        let range = if self.v6 {
            8..ipv6::HEADER_LEN
        } else {
            12..V4_HEADER_LEN
        };
        self.bytes.get(range).unwrap_or_default()
    }

    /// The pseudo-header sum but for the length.
    #[inline]
    pub(super) fn pseudo_sum(&self) -> Sum {
        Sum::of(self.addresses()) + Sum::of_u16(u16::from(self.protocol))
    }

    /// The transport header as TCP, if it is that.
    #[inline]
    pub(super) fn tcp(&self) -> Option<TcpSegment<'a>> {
        (self.protocol == TCP && !self.fragment)
            .then(|| TcpSegment::parse(self.transport_bytes()))?
    }

    /// The transport header as UDP, if it is that and ends where the packet ends.
    #[inline]
    pub(super) fn udp(&self) -> Option<UdpDatagram<'a>> {
        if self.protocol != UDP || self.fragment {
            return None;
        }
        let bytes = self.transport_bytes();
        UdpDatagram::parse(bytes).filter(|udp| usize::from(udp.len_field()) == bytes.len())
    }
}

/// Sets total length, identification and header checksum of an IPv4 header whose other
/// words add up to `rest` (see [`v4_rest_sum`]).
#[inline]
pub(super) fn patch_v4(header: &mut V4Header, rest: Sum, total_len: u16, id: u16) {
    let check = (rest + Sum::of_u16(total_len) + Sum::of_u16(id)).finish();
    header[2..4].copy_from_slice(&total_len.to_be_bytes());
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[10..12].copy_from_slice(&check);
}

/// Sums an IPv4 header, options included, without total length, identification and
/// checksum.
#[inline]
pub(super) fn v4_rest_sum(header: &[u8]) -> Sum {
    let part = |range| Sum::of(header.get(range).unwrap_or_default());
    part(0..2) + part(6..10) + part(12..header.len())
}
