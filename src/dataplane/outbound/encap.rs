//! The way out: from the TUN device to the peers.

use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Instant;

use super::batch::{MessageKey, SendPlan, Span};
use super::transmit::{Buffers, Segmentation, Transmitter};
use crate::dataplane::DeviceGone;
use crate::dataplane::checksum;
use crate::dataplane::counters::{Counter, Counters};
use crate::dataplane::outbound::pmtu_cache::PmtuCache;
use crate::dataplane::peer_counters::PeerCounters;
use crate::dataplane::tap::Direction;
use crate::offload::segment::{self, SegmentPlan};
use crate::route::peer::PeerId;
use crate::route::publish::RouteReader;
use crate::sys::tun::{TunQueue, VNET_HDR_LEN};
use crate::wire::checksum::Checksummer;
use crate::wire::flow;
use crate::wire::icmp;
use crate::wire::ipv4::{Packet, PacketError};
use crate::wire::vnet_hdr::VnetHdr;
use crate::wire::vxlan::ecn;
use crate::wire::vxlan::{ENCAP_LEN, EncapTemplate};

/// Packets of one drain at most: then the other direction has its turn.
const DRAIN_PACKETS: usize = 64;
/// The longest packet that a TUN device hands over, with its virtio-net header.
const LONGEST: usize = 65_535 + VNET_HDR_LEN;
/// Room before each packet: for the virtio-net header when it is read, then for the
/// encapsulation. Packets start on cache lines.
const HEADROOM: usize = 64;
/// Bytes of one drain: about eight packets of 64 KiB, which together stay in the second
/// level cache of current processors.
const BUFFER_LEN: usize = 512 * 1024 + LONGEST + HEADROOM;
/// Room for header blocks; when it is used up, what is planned leaves at once. Eight packets
/// of 64 KiB at an MTU of 1450 need 40 KiB.
const HEADS_LEN: usize = 64 * 1024;
/// Datagrams of a message at most (`UDP_MAX_SEGMENTS` before Linux 6.9).
const MAX_SEGMENTS: u32 = 64;

/// Outer IPv4, UDP, VXLAN and inner Ethernet header.
const OUTER_LEN: u16 = 20 + 8 + ENCAP_LEN as u16;

const _: () = assert!(HEADROOM >= ENCAP_LEN && HEADROOM >= VNET_HDR_LEN);

/// The way out of one worker.
pub struct Encap {
    tun: Arc<TunQueue>,
    vnet_len: usize,
    routes: RouteReader,
    template: EncapTemplate,
    buffer: Box<[u8]>,
    /// Header blocks of segments: encapsulation, then IP and transport header.
    heads: Box<[u8]>,
    heads_used: usize,
    checksummer: Checksummer,
    plan: SendPlan,
    transmitter: Transmitter,
    narrow: PmtuCache,
    counters: Arc<Counters>,
    peers: Arc<PeerCounters>,
}

impl Encap {
    /// A way out of this queue; `vnet_hdr` says whether its packets have that header.
    #[must_use]
    pub fn new(
        tun: Arc<TunQueue>,
        vnet_hdr: bool,
        routes: RouteReader,
        template: EncapTemplate,
        transmitter: Transmitter,
        counters: Arc<Counters>,
        peers: Arc<PeerCounters>,
    ) -> Self {
        Self {
            tun,
            vnet_len: if vnet_hdr { VNET_HDR_LEN } else { 0 },
            routes,
            template,
            buffer: vec![0; BUFFER_LEN].into_boxed_slice(),
            heads: vec![0; HEADS_LEN].into_boxed_slice(),
            heads_used: 0,
            checksummer: checksum::checksummer(),
            plan: SendPlan::new(max_segments(transmitter.segmentation())),
            transmitter,
            narrow: PmtuCache::new(Instant::now()),
            counters,
            peers,
        }
    }

    /// Moves what is queued, up to a budget.
    ///
    /// # Errors
    /// Only when the device is gone for good.
    pub fn drain(&mut self) -> Result<(), DeviceGone> {
        let mut used = 0;
        let mut outcome = Ok(());
        self.transmitter.observer_mut().refresh();
        if !self.narrow.is_empty() {
            self.narrow.expire(Instant::now());
        }
        for _ in 0..DRAIN_PACKETS {
            let start = used + HEADROOM;
            if start + LONGEST > self.buffer.len() {
                break;
            }
            let from = start - self.vnet_len;
            match self.tun.read(&mut self.buffer[from..from + LONGEST]) {
                Ok(len) => {
                    self.admit(start, len.saturating_sub(self.vnet_len));
                    used = (from + len).next_multiple_of(HEADROOM);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    outcome = Err(DeviceGone(error));
                    break;
                }
            }
        }
        self.flush();
        if let Some(destination) = self.transmitter.take_too_long() {
            self.learn_narrow_path(destination);
        }
        outcome
    }

    fn flush(&mut self) {
        flush(
            &mut self.plan,
            &mut self.transmitter,
            &self.heads,
            &self.buffer,
        );
        self.heads_used = 0;
    }

    /// Plans the packet that lies at `start`, or counts why not.
    fn admit(&mut self, start: usize, len: usize) {
        let header = match self.vnet_len {
            0 => VnetHdr::default(),
            _ => self.buffer[..start]
                .last_chunk()
                .map_or_else(VnetHdr::default, |bytes| VnetHdr::from_bytes(*bytes)),
        };
        let planned = if header.is_gso() {
            self.plan_super_packet(start, len, &header)
        } else {
            self.counters.add(Counter::TunRead, 1);
            self.plan_packet(start, len, &header)
                .map_err(|reason| (reason, 1))
        };
        let dropped = planned.err().map(|(reason, packets)| {
            self.counters.add(reason, packets);
            reason
        });
        let packet = &self.buffer[start..start + len];
        self.transmitter
            .observer()
            .show_inner(Direction::Out, packet, dropped);
    }

    fn plan_packet(&mut self, start: usize, len: usize, header: &VnetHdr) -> Result<(), Counter> {
        let packet = &mut self.buffer[start..start + len];
        segment::finish_checksum(header, packet, self.checksummer)
            .map_err(|_| Counter::OutMalformed)?;
        let way = self.way(start, len)?;
        if let Some(mtu) = self.exceeded_mtu(&way, way.total_len) {
            self.tell_sender(start, len, mtu);
            return Err(Counter::OutTooBig);
        }
        let frame = Span {
            start: (start - ENCAP_LEN) as u32,
            len: (ENCAP_LEN + way.total_len) as u32,
        };
        self.buffer[start - ENCAP_LEN..start].copy_from_slice(&way.encapsulation);
        self.plan.push(way.key, Span::default(), frame);
        self.peers.sent(way.peer, 1, way.total_len as u64);
        Ok(())
    }

    /// Cuts a super-packet: header blocks go to the arena, payload stays where it is.
    fn plan_super_packet(
        &mut self,
        start: usize,
        len: usize,
        header: &VnetHdr,
    ) -> Result<(), (Counter, u64)> {
        let way = self.way(start, len);
        let packet = &self.buffer[start..start + len];
        let Ok(cut) = SegmentPlan::new(header, packet) else {
            self.counters.add(Counter::TunRead, 1);
            return Err((Counter::OutMalformed, 1));
        };
        let count = cut.count() as u64;
        self.counters.add(Counter::TunRead, count);
        let way = way.map_err(|reason| (reason, count))?;
        let segment_len = cut.header_len() + usize::from(header.gso_size);
        if let Some(mtu) = self.exceeded_mtu(&way, segment_len) {
            self.tell_sender(start, len, mtu);
            return Err((Counter::OutTooBig, count));
        }
        let block_len = ENCAP_LEN + cut.header_len();
        if block_len > self.heads.len() {
            return Err((Counter::OutMalformed, count));
        }
        let (mut packets, mut bytes) = (0, 0);
        for number in 0..cut.count() {
            if self.heads_used + block_len > self.heads.len() {
                flush(
                    &mut self.plan,
                    &mut self.transmitter,
                    &self.heads,
                    &self.buffer,
                );
                self.heads_used = 0;
            }
            let head = Span {
                start: self.heads_used as u32,
                len: block_len as u32,
            };
            let (encapsulation, headers) = self.heads[head.range()].split_at_mut(ENCAP_LEN);
            encapsulation.copy_from_slice(&way.encapsulation);
            let Ok(payload) = cut.write_header(number, headers, self.checksummer) else {
                self.counters.add(Counter::OutMalformed, 1);
                continue;
            };
            self.heads_used += block_len;
            packets += 1;
            bytes += cut.header_len() + payload.len();
            let payload = Span {
                start: (start + payload.start) as u32,
                len: payload.len() as u32,
            };
            self.plan.push(way.key, head, payload);
        }
        self.peers.sent(way.peer, packets, bytes as u64);
        Ok(())
    }

    /// Where the packet at `start` goes, by its addresses.
    fn way(&mut self, start: usize, len: usize) -> Result<Way, Counter> {
        let packet =
            Packet::new_checked(&self.buffer[start..start + len]).map_err(|error| match error {
                PacketError::Version => Counter::OutNotIpv4,
                PacketError::Truncated | PacketError::HeaderLength => Counter::OutMalformed,
            })?;
        let destination = packet.destination();
        if destination.is_multicast() || destination.is_broadcast() {
            return Err(Counter::OutNotUnicast);
        }
        let peer = self
            .routes
            .current()
            .lookup(destination)
            .ok_or(Counter::OutNoRoute)?;
        Ok(Way {
            key: MessageKey {
                destination: peer.endpoint(),
                bucket: flow::bucket(flow::hash(&packet), self.transmitter.buckets()) as u16,
                ecn: ecn::encapsulate(packet.tos()),
            },
            peer: peer.id(),
            encapsulation: self.template.towards(peer.vtep_mac()),
            total_len: packet.total_len(),
            dont_fragment: packet.dont_fragment(),
        })
    }

    /// The longest packet that fits, where this one does not and may not be fragmented.
    fn exceeded_mtu(&self, way: &Way, packet_len: usize) -> Option<u16> {
        if self.narrow.is_empty() || !way.dont_fragment {
            return None;
        }
        self.narrow
            .inner_mtu(*way.key.destination.ip())
            .filter(|mtu| packet_len > usize::from(*mtu))
    }

    /// Writes "fragmentation needed" for the packet at `start` into the device.
    fn tell_sender(&mut self, start: usize, len: usize, mtu: u16) {
        if !self.narrow.may_tell(Instant::now()) {
            return;
        }
        let packet = &self.buffer[start..start + len];
        let Ok(header) = Packet::new_checked(packet) else {
            return;
        };
        // From the far end of the tunnel: the kernel takes no packet off the device that
        // claims to come from this host.
        let source = self.routes.current().subnet_address(header.destination());
        let mut message = [0; VNET_HDR_LEN + icmp::V4_MAX_LEN];
        let space = &mut message[self.vnet_len..];
        // What must not be answered is not.
        let Ok(length) = icmp::fragmentation_needed(packet, source, mtu, space) else {
            return;
        };
        if self.tun.write(&message[..self.vnet_len + length]).is_ok() {
            self.counters.add(Counter::IcmpSent, 1);
        }
    }

    /// The kernel refused to cut a message, because its datagrams are longer than what the
    /// device below takes.
    fn learn_narrow_path(&mut self, destination: SocketAddrV4) {
        let Ok(mtu) = self.transmitter.path_mtu(destination) else {
            return;
        };
        let inner = mtu.saturating_sub(OUTER_LEN);
        if self.narrow.learn(*destination.ip(), inner, Instant::now()) {
            tracing::warn!(
                event = "path_narrow", peer = %destination.ip(), path_mtu = mtu, inner_mtu = inner,
                "packets of the overlay's MTU do not fit on the way to this peer; set \"MTU\" in \
                 the network config's Backend, or raise the MTU of the interface"
            );
        }
    }
}

/// Sends what is planned.
fn flush(plan: &mut SendPlan, transmitter: &mut Transmitter, heads: &[u8], packets: &[u8]) {
    if plan.is_empty() {
        return;
    }
    transmitter.flush(plan, Buffers { heads, packets });
    plan.clear();
    plan.set_max_segments(max_segments(transmitter.segmentation()));
}

/// Where a packet goes.
struct Way {
    key: MessageKey,
    peer: PeerId,
    encapsulation: [u8; ENCAP_LEN],
    /// Length of the packet without padding.
    total_len: usize,
    /// Whether the packet may not be fragmented.
    dont_fragment: bool,
}

const fn max_segments(segmentation: Segmentation) -> u32 {
    match segmentation {
        Segmentation::Kernel => MAX_SEGMENTS,
        Segmentation::Off => 1,
    }
}
