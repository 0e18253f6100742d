//! What is to be written, and how merged packets are put together.

use std::ops::Range;
use std::slice;

use super::candidate::Candidate;
use super::{MAX_MEMBERS, MAX_TOTAL_LEN, NONE, PacketRef, Policy, single};
use crate::offload::ip;
use crate::wire::checksum::Sum;
use crate::wire::ipv6::{self, Ipv6HeaderMut};
use crate::wire::tcp::{Flags, TcpHeaderMut, TcpSegment};
use crate::wire::udp::UdpHeaderMut;
use crate::wire::vnet_hdr::{
    CSUM_OFFSET_TCP, CSUM_OFFSET_UDP, F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VnetHdr,
};

/// A packet of an entry, and the one after it in the same entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    packet: PacketRef,
    /// Bytes of its payload, where it can be merged.
    payload_len: u16,
    next: u32,
}

impl Member {
    pub(super) const fn new(packet: PacketRef, payload_len: u16) -> Self {
        Self {
            packet,
            payload_len,
            next: NONE,
        }
    }
}

/// One write to come: a packet, or several merged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// First and last member.
    chain: (u32, u32),
    count: u16,
    /// What the first packet is, if it began a group.
    first: Option<Candidate>,
    /// Payload bytes of all packets, if they form a group.
    payload_len: u32,
    /// Whether the last packet has PSH.
    push: bool,
    /// The vnet header, if it came with the packet.
    given: Option<VnetHdr>,
    vnet: VnetHdr,
    /// Where the header block lies, as start and end.
    header: (u32, u32),
}

impl Entry {
    /// An entry of one packet, with the vnet header to write it with if that is known.
    pub(super) fn new(member: u32, given: Option<VnetHdr>) -> Self {
        Self {
            chain: (member, member),
            count: 1,
            first: None,
            payload_len: 0,
            push: false,
            given,
            vnet: VnetHdr::default(),
            header: (0, 0),
        }
    }

    /// Makes the entry one that others can be appended to.
    #[inline]
    pub(super) fn begin_group(&mut self, first: Candidate) {
        self.first = Some(first);
        self.payload_len = u32::from(first.payload_len);
    }

    /// Whether `candidate` fits by its size: not above the first packet's, the whole not
    /// above 65535 bytes, and not too many packets.
    #[inline]
    pub(super) fn has_room(
        &self,
        first: &Candidate,
        candidate: &Candidate,
        policy: &Policy,
    ) -> bool {
        let most = if first.key.protocol == ip::UDP {
            policy.udp_max_segments.min(MAX_MEMBERS)
        } else {
            MAX_MEMBERS
        };
        let total = usize::from(first.header_len)
            + self.payload_len as usize
            + usize::from(candidate.payload_len);
        candidate.payload_len <= first.payload_len && self.count < most && total <= MAX_TOTAL_LEN
    }

    /// Appends a packet for which all rules hold.
    #[inline]
    pub(super) fn append(
        &mut self,
        members: &mut Vec<Member>,
        packet: PacketRef,
        candidate: &Candidate,
    ) {
        let next = members.len() as u32;
        members.push(Member::new(packet, candidate.payload_len));
        if let Some(last) = members.get_mut(self.chain.1 as usize) {
            last.next = next;
        }
        self.chain.1 = next;
        self.count += 1;
        self.payload_len += u32::from(candidate.payload_len);
        self.push |= candidate.ends_group;
    }

    /// Fixes the vnet header and, if packets were merged, appends the header block to
    /// `headers`. `packet` is the first one.
    pub(super) fn complete(&mut self, packet: &[u8], policy: &Policy, headers: &mut Vec<u8>) {
        let start = headers.len();
        match self.merged() {
            Some(first) => {
                self.vnet = merged_vnet(&first);
                headers.extend_from_slice(
                    packet
                        .get(..usize::from(first.header_len))
                        .unwrap_or_default(),
                );
                let block = headers.get_mut(start..).unwrap_or_default();
                patch_merged(block, &first, self.payload_len as usize, self.push);
            }
            None => {
                self.vnet = self
                    .given
                    .unwrap_or_else(|| single::classify_partial(packet, policy.tun_mtu));
            }
        }
        self.header = (start as u32, headers.len() as u32);
    }

    pub(super) const fn first_member(&self) -> u32 {
        self.chain.0
    }

    /// What the first packet is, if there are more.
    fn merged(&self) -> Option<Candidate> {
        self.first.filter(|_| self.count > 1)
    }
}

/// Where a member's packet lies.
pub(super) fn packet_of(members: &[Member], member: u32) -> Option<PacketRef> {
    members.get(member as usize).map(|member| member.packet)
}

/// The vnet header of packets merged behind `first`. The kernel takes `hdr_len` as the
/// part to copy into the linear area of its buffer.
fn merged_vnet(first: &Candidate) -> VnetHdr {
    let tcp = first.key.protocol == ip::TCP;
    VnetHdr {
        flags: F_NEEDS_CSUM,
        gso_type: match (tcp, first.key.v6) {
            (true, false) => GSO_TCPV4,
            (true, true) => GSO_TCPV6,
            (false, _) => GSO_UDP_L4,
        },
        hdr_len: u16::from(first.header_len),
        gso_size: first.payload_len,
        csum_start: u16::from(first.transport),
        csum_offset: if tcp {
            CSUM_OFFSET_TCP
        } else {
            CSUM_OFFSET_UDP
        },
    }
}

/// Turns the headers of the first packet into those of the merged one: lengths, the IPv4
/// checksum, PSH of the last, and the folded pseudo-header sum as seed of the checksum.
fn patch_merged(block: &mut [u8], first: &Candidate, payload_len: usize, push: bool) {
    // Nothing is cut short: `Entry::has_room` keeps the whole within 65535 bytes.
    let total = block.len() + payload_len;
    let Some((ip_header, transport)) = block.split_at_mut_checked(usize::from(first.transport))
    else {
        return;
    };
    if first.key.v6 {
        if let Some(mut header) = Ipv6HeaderMut::parse(ip_header) {
            header.set_payload_len(total.saturating_sub(ipv6::HEADER_LEN) as u16);
        }
    } else {
        let rest = ip::v4_rest_sum(ip_header);
        if let Some(header) = ip_header.first_chunk_mut() {
            ip::patch_v4(header, rest, total as u16, first.ip_id);
        }
    }
    let len = total.saturating_sub(usize::from(first.transport)) as u16;
    let seed = (first.pseudo_sum() + Sum::of_u16(len)).fold();
    if first.key.protocol == ip::TCP {
        let flags = TcpSegment::parse(transport)
            .map(|tcp| tcp.flags())
            .unwrap_or_default();
        if let Some(mut header) = TcpHeaderMut::parse(transport) {
            header.set_flags(if push { flags.with(Flags::PSH) } else { flags });
            header.set_checksum(seed);
        }
    } else if let Some(mut header) = UdpHeaderMut::parse(transport) {
        header.set_len(len);
        header.set_checksum(seed);
    }
}

/// The writes of a drain, in order.
#[derive(Clone, Debug)]
pub struct Writes<'a> {
    entries: slice::Iter<'a, Entry>,
    members: &'a [Member],
    headers: &'a [u8],
}

impl<'a> Writes<'a> {
    pub(super) fn new(entries: &'a [Entry], members: &'a [Member], headers: &'a [u8]) -> Self {
        Self {
            entries: entries.iter(),
            members,
            headers,
        }
    }
}

impl<'a> Iterator for Writes<'a> {
    type Item = Write<'a>;

    fn next(&mut self) -> Option<Write<'a>> {
        let entry = self.entries.next()?;
        let header = entry.header.0 as usize..entry.header.1 as usize;
        Some(Write {
            vnet: entry.vnet,
            header: self.headers.get(header).unwrap_or_default(),
            entry,
            members: self.members,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.entries.size_hint()
    }
}

impl ExactSizeIterator for Writes<'_> {}

/// One write to the TUN: vnet header, header block, pieces of the arena, in this order.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// The vnet header before the packet.
    pub vnet: VnetHdr,
    /// IP and transport header of merged packets; empty for a packet that is written as it
    /// is, whose headers are in its piece.
    pub header: &'a [u8],
    entry: &'a Entry,
    members: &'a [Member],
}

impl<'a> Write<'a> {
    /// The parts of the arena that follow the header: the payloads of merged packets, or
    /// one whole packet. At most [`MAX_MEMBERS`].
    #[must_use]
    pub fn pieces(&self) -> Pieces<'a> {
        let header_len = self.entry.merged().map(|first| u32::from(first.header_len));
        Pieces {
            packets: self.members(),
            header_len,
        }
    }

    /// The packets as they arrived, for a caller who has to write them one by one because
    /// the kernel refused the whole; each then with [`super::classify_partial`].
    #[must_use]
    pub fn packets(&self) -> Packets<'a> {
        Packets(self.members())
    }

    /// How many packets this write carries.
    #[must_use]
    pub const fn packet_count(&self) -> usize {
        self.entry.count as usize
    }

    /// Whether packets were merged.
    #[must_use]
    pub const fn is_merged(&self) -> bool {
        self.entry.count > 1
    }

    fn members(&self) -> Chain<'a> {
        Chain {
            members: self.members,
            next: self.entry.chain.0,
        }
    }
}

/// Follows the members of an entry.
#[derive(Clone, Debug)]
struct Chain<'a> {
    members: &'a [Member],
    next: u32,
}

impl Iterator for Chain<'_> {
    type Item = Member;

    #[inline]
    fn next(&mut self) -> Option<Member> {
        let member = *self.members.get(self.next as usize)?;
        self.next = member.next;
        Some(member)
    }
}

/// The packets of a write, in order.
#[derive(Clone, Debug)]
pub struct Packets<'a>(Chain<'a>);

impl Iterator for Packets<'_> {
    type Item = PacketRef;

    #[inline]
    fn next(&mut self) -> Option<PacketRef> {
        self.0.next().map(|member| member.packet)
    }
}

/// The parts of the arena that a write sends, in order, as byte ranges.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    packets: Chain<'a>,
    /// Bytes of the headers, which are left out of merged packets.
    header_len: Option<u32>,
}

impl Iterator for Pieces<'_> {
    type Item = Range<usize>;

    #[inline]
    fn next(&mut self) -> Option<Range<usize>> {
        let member = self.packets.next()?;
        Some(match self.header_len {
            // Not up to the packet's end: bytes may lie behind that of the IP packet.
            Some(header_len) => {
                let start = (member.packet.offset + header_len) as usize;
                start..start + usize::from(member.payload_len)
            }
            None => member.packet.range(),
        })
    }
}
