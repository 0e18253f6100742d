//! What one packet is to the coalescer: a segment that may be merged, one that its flow
//! must not overtake, or neither.

use super::Policy;
use crate::offload::ip::{self, IpPacket};
use crate::wire::checksum::{Checksummer, Sum};
use crate::wire::ipv6;
use crate::wire::tcp::{Flags, TcpSegment};
use crate::wire::udp;

/// Ports of tunnels in the kernel: L2TP, IPsec NAT-T, GTP-U, VXLAN (IANA's and Linux's),
/// GENEVE, WireGuard.
const TUNNEL_PORTS: [u16; 8] = [1701, 2152, 4500, 4789, 6081, 8472, 51820, 51821];

/// The flags of a segment that can be merged; each of the others means something at one
/// place of the stream.
const MERGEABLE: Flags = Flags::ACK.with(Flags::PSH).with(Flags::ECE);

/// What identifies a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowKey {
    pub ports: [u8; 4],
    pub protocol: u8,
    pub v6: bool,
    pub addresses: Addresses,
}

/// Source and destination as they lie; the rest is zero with IPv4.
pub(super) type Addresses = [u8; 32];

/// What the coalescer sees in a packet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Seen {
    /// Alone it obeys all rules.
    Segment(Candidate),
    /// It must be written as it is, and stay in order with its flow.
    Flow(FlowKey),
    /// As `Flow`, but its ports are not known.
    Addresses(Addresses),
    /// It is no IP packet.
    Opaque,
}

/// A segment that may be merged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub key: FlowKey,
    /// Bytes of the IP header.
    pub transport: u8,
    /// Bytes of IP and transport header.
    pub header_len: u8,
    /// Bytes of payload, at least 1.
    pub payload_len: u16,
    /// IPv4 identification; 0 with IPv6.
    pub ip_id: u16,
    /// IPv4 DF.
    pub dont_fragment: bool,
    /// Sequence number; 0 with UDP.
    pub seq: u32,
    /// PSH: nothing can be appended.
    pub ends_group: bool,
}

/// Sorts a packet by the rules which it must obey alone.
#[inline]
pub(super) fn look(bytes: &[u8], policy: &Policy) -> Seen {
    let Ok(packet) = IpPacket::parse(bytes) else {
        return Seen::Opaque;
    };
    let mut addresses = [0; 32];
    for (to, from) in addresses.iter_mut().zip(packet.addresses()) {
        *to = *from;
    }
    let known = !packet.fragment && matches!(packet.protocol, ip::TCP | ip::UDP);
    let Some(ports) = packet.transport_bytes().first_chunk().filter(|_| known) else {
        return Seen::Addresses(addresses);
    };
    let key = FlowKey {
        ports: *ports,
        protocol: packet.protocol,
        v6: packet.v6,
        addresses,
    };
    if packet.bytes.len() > policy.tun_mtu || !has_plain_ip_header(&packet) {
        return Seen::Flow(key);
    }
    let candidate = if packet.protocol == ip::TCP {
        policy.tcp.then(|| tcp_candidate(&packet, key)).flatten()
    } else {
        policy
            .udp
            .then(|| udp_candidate(&packet, key, policy))
            .flatten()
    };
    candidate.map_or(Seen::Flow(key), Seen::Segment)
}

/// No options, no extension headers, and undamaged where it has a checksum.
#[inline]
fn has_plain_ip_header(packet: &IpPacket<'_>) -> bool {
    if packet.v6 {
        packet.transport == ipv6::HEADER_LEN
    } else {
        packet.transport == ip::V4_HEADER_LEN && Sum::of(packet.ip_headers()).is_valid()
    }
}

#[inline]
fn tcp_candidate(packet: &IpPacket<'_>, key: FlowKey) -> Option<Candidate> {
    let tcp = packet.tcp()?;
    let flags = tcp.flags();
    if !flags.contains(Flags::ACK) || !MERGEABLE.contains(flags) || tcp.payload().is_empty() {
        return None;
    }
    Some(Candidate {
        seq: tcp.seq(),
        ends_group: flags.contains(Flags::PSH),
        ..candidate(packet, key, tcp.header_len(), tcp.payload().len())
    })
}

#[inline]
fn udp_candidate(packet: &IpPacket<'_>, key: FlowKey, policy: &Policy) -> Option<Candidate> {
    let udp = packet.udp()?;
    if udp.checksum() == [0, 0] || udp.payload().is_empty() {
        return None;
    }
    if policy.spare_tunnel_ports && TUNNEL_PORTS.contains(&udp.dst_port()) {
        return None;
    }
    Some(candidate(packet, key, udp::HEADER_LEN, udp.payload().len()))
}

#[inline]
fn candidate(packet: &IpPacket<'_>, key: FlowKey, header: usize, payload: usize) -> Candidate {
    let (ip_id, dont_fragment) = match packet.ip_headers() {
        [_, _, _, _, high, low, flags, ..] if !packet.v6 => {
            (u16::from_be_bytes([*high, *low]), flags & 0x40 != 0)
        }
        _ => (0, false),
    };
    // Both headers together are at most 100 bytes, and a packet at most 65575.
    Candidate {
        key,
        transport: packet.transport as u8,
        header_len: (packet.transport + header) as u8,
        payload_len: payload as u16,
        ip_id,
        dont_fragment,
        seq: 0,
        ends_group: false,
    }
}

impl Candidate {
    /// The sequence number that follows this segment; 0 with UDP, which has none.
    #[inline]
    pub(super) const fn next_seq(&self) -> u32 {
        if self.key.protocol == ip::TCP {
            self.seq.wrapping_add(self.payload_len as u32)
        } else {
            0
        }
    }

    /// The packet without bytes behind its end.
    #[inline]
    pub(super) fn cut<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let len = usize::from(self.header_len) + usize::from(self.payload_len);
        bytes.get(..len).unwrap_or_default()
    }

    /// Whether `other`, a packet of the same flow, has the same headers but for the fields
    /// that segments of one super-packet may differ in: lengths, identification, sequence
    /// number, checksums and PSH.
    #[inline]
    pub(super) fn same_headers(&self, mine: &[u8], other: &Self, theirs: &[u8]) -> bool {
        if self.header_len != other.header_len {
            return false;
        }
        let (Some((my_ip, mine)), Some((their_ip, theirs))) =
            (self.split_header(mine), other.split_header(theirs))
        else {
            return false;
        };
        let same_ip = if self.key.v6 {
            same(my_ip, their_ip, 0..4) && same(my_ip, their_ip, 6..8)
        } else {
            same(my_ip, their_ip, 0..2) && same(my_ip, their_ip, 6..10)
        };
        same_ip && (self.key.protocol == ip::UDP || same_tcp(mine, theirs))
    }

    fn split_header<'a>(&self, bytes: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        bytes
            .get(..usize::from(self.header_len))?
            .split_at_checked(usize::from(self.transport))
    }

    /// Sum of the pseudo-header but for the length.
    #[inline]
    pub(super) fn pseudo_sum(&self) -> Sum {
        Sum::of(&self.key.addresses) + Sum::of_u16(u16::from(self.key.protocol))
    }

    /// Whether the transport checksum is right, or left to be done by a kernel that knew
    /// the packet would not leave the machine (see [`super::classify_partial`]). Merged
    /// packets are not verified by anybody behind us.
    #[inline]
    pub(super) fn is_undamaged(&self, bytes: &[u8], csum: Checksummer) -> bool {
        let Some(transport) = self.cut(bytes).get(usize::from(self.transport)..) else {
            return false;
        };
        let pseudo = self.pseudo_sum() + Sum::of_u16(transport.len() as u16);
        let at = if self.key.protocol == ip::TCP { 16 } else { 6 };
        transport.get(at..at + 2) == Some(&pseudo.fold()[..])
            || (pseudo + csum.sum(transport)).is_valid()
    }
}

/// Same acknowledgment, reserved bits, flags (PSH aside), window, urgent pointer, options.
#[inline]
fn same_tcp(mine: &[u8], theirs: &[u8]) -> bool {
    let flags = |header| TcpSegment::parse(header).map(|tcp| tcp.flags().without(Flags::PSH));
    same(mine, theirs, 8..13)
        && flags(mine) == flags(theirs)
        && same(mine, theirs, 14..16)
        && same(mine, theirs, 18..mine.len())
}

#[inline]
fn same(mine: &[u8], theirs: &[u8], range: std::ops::Range<usize>) -> bool {
    mine.get(range.clone()) == theirs.get(range)
}
