//! One super-packet from the TUN device into the packets of its flow, as the kernel's
//! `tcp_gso_segment` and `__udp_gso_segment` would cut it.
//!
//! Only headers are written; payload stays where it is, and whoever sends gathers both.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use crate::wire::checksum::{self, Sum, Summer};
use crate::wire::vnet_hdr::{GsoKind, VnetHdr};
use crate::wire::{ipv4, tcp};

/// Longest header block: IPv6 with some extension headers, or IPv4 with options, and TCP.
pub const MAX_HEADER_LEN: usize = 256;

const IPV6_HEADER_LEN: usize = 40;
const UDP_HEADER_LEN: usize = 8;

/// Why a packet cannot be cut or finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The virtio-net header does not fit the packet.
    #[error("virtio-net header does not fit the packet")]
    Header,
    /// The packet is not of the kind that its virtio-net header says.
    #[error("packet is not of the announced kind")]
    Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp { sequence: u32, flags: u8 },
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    /// With the sum of the header but length, identification and checksum.
    V4 {
        sum: Sum,
        identification: u16,
    },
    V6,
}

/// How a super-packet is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    transport: Transport,
    network: Network,
    transport_start: usize,
    header_len: usize,
    packet_len: usize,
    segment_len: usize,
    /// Sum of pseudo header and transport header but lengths, sequence, flags, checksum.
    transport_sum: Sum,
}

impl Cut {
    /// Understands a super-packet: its virtio-net header and its bytes.
    ///
    /// # Errors
    /// [`SegmentError`] for what the kernel would never hand over.
    pub fn new(header: &VnetHdr, packet: &[u8]) -> Result<Self, SegmentError> {
        let start = usize::from(header.csum_start);
        let segment_len = usize::from(header.gso_size);
        if !header.needs_checksum() || segment_len == 0 || start >= packet.len() {
            return Err(SegmentError::Header);
        }
        let (transport, transport_len) = Transport::read(header.gso, &packet[start..])?;
        let header_len = start + transport_len;
        if header_len >= packet.len() || header_len > MAX_HEADER_LEN {
            return Err(SegmentError::Header);
        }
        let (network, pseudo) = Network::read(header.gso, transport, &packet[..start])?;
        let mut block = [0; MAX_HEADER_LEN];
        let block = &mut block[..transport_len];
        block.copy_from_slice(&packet[start..header_len]);
        transport.clear_varying(block);
        Ok(Self {
            transport,
            network,
            transport_start: start,
            header_len,
            packet_len: packet.len(),
            segment_len,
            transport_sum: pseudo.plus(Summer::PORTABLE.sum(block)),
        })
    }

    /// Number of packets, at least 1.
    #[must_use]
    #[inline]
    pub const fn count(&self) -> usize {
        (self.packet_len - self.header_len).div_ceil(self.segment_len)
    }

    /// Length of each packet's headers in bytes.
    #[must_use]
    #[inline]
    pub const fn header_len(&self) -> usize {
        self.header_len
    }

    /// Where the payload of a packet lies in the super-packet.
    #[must_use]
    #[inline]
    pub fn payload(&self, number: usize) -> Range<usize> {
        let start = self.header_len + number * self.segment_len;
        start..(start + self.segment_len).min(self.packet_len)
    }

    /// Writes the headers of a packet, finished, into `block` of [`Cut::header_len`] bytes.
    /// `packet` is the super-packet given to [`Cut::new`].
    ///
    /// # Panics
    /// When `block` or `packet` has another length, or there is no such packet.
    #[inline]
    pub fn write_header(&self, number: usize, packet: &[u8], block: &mut [u8], summer: Summer) {
        block.copy_from_slice(&packet[..self.header_len]);
        let payload = self.payload(number);
        let transport_len = self.header_len - self.transport_start + payload.len();
        self.write_network(number, transport_len, &mut block[..self.transport_start]);

        let header = &mut block[self.transport_start..];
        // In the pseudo header; a segment of 64 KiB and more does not exist.
        let mut sum = self.transport_sum.plus_word(transport_len as u16);
        let check = match self.transport {
            Transport::Tcp { sequence, flags } => {
                let sequence = sequence.wrapping_add((number * self.segment_len) as u32);
                let flags = flags_of(flags, number == 0, payload.end == self.packet_len);
                header[tcp::field::SEQUENCE].copy_from_slice(&sequence.to_be_bytes());
                header[tcp::field::FLAGS] = flags;
                sum = sum.plus_long(sequence).plus_word(u16::from(flags));
                tcp::field::CHECKSUM
            }
            Transport::Udp => {
                header[4..6].copy_from_slice(&(transport_len as u16).to_be_bytes());
                sum = sum.plus_word(transport_len as u16);
                6..8
            }
        };
        let mut value = sum.plus(summer.sum(&packet[payload])).checksum();
        if self.transport == Transport::Udp {
            value = checksum::nonzero(value);
        }
        header[check].copy_from_slice(&value.to_be_bytes());
    }

    fn write_network(&self, number: usize, transport_len: usize, header: &mut [u8]) {
        match self.network {
            Network::V4 {
                sum,
                identification,
            } => {
                let total = (self.transport_start + transport_len) as u16;
                let identification = identification.wrapping_add(number as u16);
                header[2..4].copy_from_slice(&total.to_be_bytes());
                header[4..6].copy_from_slice(&identification.to_be_bytes());
                let check = sum.plus_word(total).plus_word(identification).checksum();
                header[10..12].copy_from_slice(&check.to_be_bytes());
            }
            Network::V6 => {
                let len = (self.transport_start - IPV6_HEADER_LEN + transport_len) as u16;
                header[4..6].copy_from_slice(&len.to_be_bytes());
            }
        }
    }
}

/// FIN and PSH belong to the last packet, CWR to the first (RFC 3168 section 6.1.2).
const fn flags_of(flags: u8, first: bool, last: bool) -> u8 {
    let mut flags = flags;
    if !last {
        flags &= !(tcp::FIN | tcp::PSH);
    }
    if !first {
        flags &= !tcp::CWR;
    }
    flags
}

impl Transport {
    fn read(kind: GsoKind, bytes: &[u8]) -> Result<(Self, usize), SegmentError> {
        match kind {
            GsoKind::TcpV4 | GsoKind::TcpV6 => {
                let segment = tcp::Segment::new_checked(bytes).ok_or(SegmentError::Header)?;
                let transport = Self::Tcp {
                    sequence: segment.sequence(),
                    flags: segment.flags(),
                };
                Ok((transport, segment.header_len()))
            }
            GsoKind::UdpL4 if bytes.len() >= UDP_HEADER_LEN => Ok((Self::Udp, UDP_HEADER_LEN)),
            GsoKind::UdpL4 => Err(SegmentError::Header),
            GsoKind::None => Err(SegmentError::Kind),
        }
    }

    const fn protocol(self) -> u8 {
        match self {
            Self::Tcp { .. } => ipv4::PROTOCOL_TCP,
            Self::Udp => ipv4::PROTOCOL_UDP,
        }
    }

    /// Zeroes what differs from packet to packet, so that the rest is summed once.
    fn clear_varying(self, header: &mut [u8]) {
        match self {
            Self::Tcp { .. } => {
                header[tcp::field::SEQUENCE].fill(0);
                header[tcp::field::FLAGS] = 0;
                header[tcp::field::CHECKSUM].fill(0);
            }
            Self::Udp => header[4..8].fill(0),
        }
    }
}

impl Network {
    /// Also returns the pseudo header's sum, without the length.
    fn read(
        kind: GsoKind,
        transport: Transport,
        header: &[u8],
    ) -> Result<(Self, Sum), SegmentError> {
        let version = header.first().map_or(0, |first| first >> 4);
        let protocol = transport.protocol();
        match (version, kind) {
            (4, GsoKind::TcpV4 | GsoKind::UdpL4) => Self::read_v4(protocol, header),
            (6, GsoKind::TcpV6 | GsoKind::UdpL4) => Self::read_v6(protocol, header),
            _ => Err(SegmentError::Kind),
        }
    }

    fn read_v4(protocol: u8, header: &[u8]) -> Result<(Self, Sum), SegmentError> {
        let len = header.len();
        if !(ipv4::MIN_HEADER_LEN..=60).contains(&len) || usize::from(header[0] & 0x0f) * 4 != len {
            return Err(SegmentError::Header);
        }
        if header[9] != protocol {
            return Err(SegmentError::Kind);
        }
        let mut block = [0; 60];
        let block = &mut block[..len];
        block.copy_from_slice(header);
        block[2..6].fill(0);
        block[10..12].fill(0);
        let address =
            |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        let network = Self::V4 {
            sum: Summer::PORTABLE.sum(block),
            identification: u16::from_be_bytes([header[4], header[5]]),
        };
        Ok((
            network,
            checksum::pseudo_v4(address(12), address(16), protocol, 0),
        ))
    }

    fn read_v6(protocol: u8, header: &[u8]) -> Result<(Self, Sum), SegmentError> {
        let Some(fixed) = header.first_chunk::<IPV6_HEADER_LEN>() else {
            return Err(SegmentError::Header);
        };
        let address = |at: usize| -> Option<Ipv6Addr> {
            Some(Ipv6Addr::from(*fixed.get(at..)?.first_chunk::<16>()?))
        };
        let (Some(source), Some(destination)) = (address(8), address(24)) else {
            return Err(SegmentError::Header);
        };
        Ok((
            Self::V6,
            checksum::pseudo_v6(source, destination, protocol, 0),
        ))
    }
}

/// Finishes the checksum of a single packet whose virtio-net header says that it needs it.
///
/// # Errors
/// When the header points outside the packet.
pub fn finish_checksum(
    header: &VnetHdr,
    packet: &mut [u8],
    summer: Summer,
) -> Result<(), SegmentError> {
    let start = usize::from(header.csum_start);
    let at = start + usize::from(header.csum_offset);
    if at + 2 > packet.len() {
        return Err(SegmentError::Header);
    }
    // The field holds the pseudo header's sum: it takes part.
    let mut value = summer.sum(&packet[start..]).checksum();
    if header.csum_offset == 6 {
        value = checksum::nonzero(value);
    }
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests;
