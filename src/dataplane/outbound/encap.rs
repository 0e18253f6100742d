//! From the TUN device to the peers.

use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Instant;

use super::batch::{MessageKey, SendPlan, Span};
use super::pmtu_cache::PmtuCache;
use super::transmit::{Buffers, Segmentation, Transmitter};
use crate::dataplane::checksum;
use crate::dataplane::counters::{Counter, Counters};
use crate::dataplane::peer_counters::PeerCounters;
use crate::dataplane::tap::Direction;
use crate::dataplane::{DeviceGone, Options};
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

/// Packets per drain. After them the other direction has its turn.
const DRAIN_PACKETS: usize = 64;
/// The longest packet of a TUN device, with its virtio-net header.
const LONGEST: usize = 65_535 + VNET_HDR_LEN;
/// Bytes before each packet, for the virtio-net header on reading and then for the
/// encapsulation. It keeps packets aligned to cache lines.
const HEADROOM: usize = 64;
/// Bytes per drain: about eight packets of 64 KiB, which fit into the L2 cache of current
/// CPUs.
const BUFFER_LEN: usize = 512 * 1024 + LONGEST + HEADROOM;
/// Space for header blocks. When it is full, planned packets are sent at once. Eight packets of
/// 64 KiB at an MTU of 1450 need 40 KiB.
const HEADS_LEN: usize = 64 * 1024;
/// Datagrams per message (`UDP_MAX_SEGMENTS` before Linux 6.9).
const MAX_SEGMENTS: u32 = 64;

/// Outer IPv4, UDP, VXLAN and inner Ethernet header.
const OUTER_LEN: u16 = 20 + 8 + ENCAP_LEN as u16;

const _: () = assert!(HEADROOM >= ENCAP_LEN && HEADROOM >= VNET_HDR_LEN);

/// One worker's outbound direction.
pub(crate) struct Encap {
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
    pmtu_cache: PmtuCache,
    counters: Arc<Counters>,
    peers: Arc<PeerCounters>,
}

impl Encap {
    /// Reads from this queue. `vnet_hdr` tells whether its packets have a virtio-net header.
    pub(crate) fn new(
        tun: Arc<TunQueue>,
        vnet_hdr: bool,
        options: &Options,
        transmitter: Transmitter,
        counters: Arc<Counters>,
        peers: Arc<PeerCounters>,
    ) -> Self {
        Self {
            tun,
            vnet_len: if vnet_hdr { VNET_HDR_LEN } else { 0 },
            routes: options.routes.reader(),
            template: EncapTemplate::ipv4(options.vtep.vni, options.vtep.mac),
            buffer: vec![0; BUFFER_LEN].into_boxed_slice(),
            heads: vec![0; HEADS_LEN].into_boxed_slice(),
            heads_used: 0,
            checksummer: checksum::checksummer(),
            plan: SendPlan::new(max_segments(transmitter.segmentation())),
            transmitter,
            pmtu_cache: PmtuCache::new(Instant::now()),
            counters,
            peers,
        }
    }

    /// Processes queued packets up to a budget. Fails only when the device is gone for good.
    pub(crate) fn drain(&mut self) -> Result<(), DeviceGone> {
        let mut used = 0;
        let mut result = Ok(());
        self.transmitter.observer_mut().refresh();
        if !self.pmtu_cache.is_empty() {
            self.pmtu_cache.expire(Instant::now());
        }
        for _ in 0..DRAIN_PACKETS {
            let start = used + HEADROOM;
            if start + LONGEST > self.buffer.len() {
                break;
            }
            let from = start - self.vnet_len;
            match self.tun.read(&mut self.buffer[from..from + LONGEST]) {
                Ok(len) => {
                    self.process(start, len.saturating_sub(self.vnet_len));
                    used = (from + len).next_multiple_of(HEADROOM);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    result = Err(DeviceGone(error));
                    break;
                }
            }
        }
        self.flush();
        if let Some(destination) = self.transmitter.take_oversized() {
            self.learn_path_mtu(destination);
        }
        result
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

    /// Plans the send of the packet at `start`, or counts the reason against it.
    fn process(&mut self, start: usize, len: usize) {
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
            .report_inner(Direction::Out, packet, dropped);
    }

    fn plan_packet(&mut self, start: usize, len: usize, header: &VnetHdr) -> Result<(), Counter> {
        let packet = &mut self.buffer[start..start + len];
        segment::finish_checksum(header, packet, self.checksummer)
            .map_err(|_| Counter::OutMalformed)?;
        let forwarding = self.route(start, len)?;
        if let Some(mtu) = self.exceeded_mtu(&forwarding, forwarding.total_len) {
            self.send_icmp_too_big(start, len, mtu);
            return Err(Counter::OutTooBig);
        }
        let frame = Span {
            start: (start - ENCAP_LEN) as u32,
            len: (ENCAP_LEN + forwarding.total_len) as u32,
        };
        self.buffer[start - ENCAP_LEN..start].copy_from_slice(&forwarding.encapsulation);
        self.plan.push(forwarding.key, Span::default(), frame);
        self.peers
            .sent(forwarding.peer, 1, forwarding.total_len as u64);
        Ok(())
    }

    /// Segments a super-packet. Header blocks go to the arena, payload stays in place.
    fn plan_super_packet(
        &mut self,
        start: usize,
        len: usize,
        header: &VnetHdr,
    ) -> Result<(), (Counter, u64)> {
        let forwarding = self.route(start, len);
        let packet = &self.buffer[start..start + len];
        let Ok(segments) = SegmentPlan::new(header, packet) else {
            self.counters.add(Counter::TunRead, 1);
            return Err((Counter::OutMalformed, 1));
        };
        let count = segments.count() as u64;
        self.counters.add(Counter::TunRead, count);
        let forwarding = forwarding.map_err(|reason| (reason, count))?;
        let segment_len = segments.header_len() + usize::from(header.gso_size);
        if let Some(mtu) = self.exceeded_mtu(&forwarding, segment_len) {
            self.send_icmp_too_big(start, len, mtu);
            return Err((Counter::OutTooBig, count));
        }
        let block_len = ENCAP_LEN + segments.header_len();
        if block_len > self.heads.len() {
            return Err((Counter::OutMalformed, count));
        }
        let (mut packets, mut bytes) = (0, 0);
        for number in 0..segments.count() {
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
            encapsulation.copy_from_slice(&forwarding.encapsulation);
            let Ok(payload) = segments.write_header(number, headers, self.checksummer) else {
                self.counters.add(Counter::OutMalformed, 1);
                continue;
            };
            self.heads_used += block_len;
            packets += 1;
            bytes += segments.header_len() + payload.len();
            let payload = Span {
                start: (start + payload.start) as u32,
                len: payload.len() as u32,
            };
            self.plan.push(forwarding.key, head, payload);
        }
        self.peers.sent(forwarding.peer, packets, bytes as u64);
        Ok(())
    }

    /// Looks up the peer for the packet at `start`.
    fn route(&mut self, start: usize, len: usize) -> Result<Forwarding, Counter> {
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
        Ok(Forwarding {
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

    /// The path MTU, if this packet exceeds it and must not be fragmented.
    fn exceeded_mtu(&self, forwarding: &Forwarding, packet_len: usize) -> Option<u16> {
        if self.pmtu_cache.is_empty() || !forwarding.dont_fragment {
            return None;
        }
        self.pmtu_cache
            .inner_mtu(*forwarding.key.destination.ip())
            .filter(|mtu| packet_len > usize::from(*mtu))
    }

    /// Answers the packet at `start` with "fragmentation needed", through the device.
    fn send_icmp_too_big(&mut self, start: usize, len: usize, mtu: u16) {
        if !self.pmtu_cache.may_send_icmp(Instant::now()) {
            return;
        }
        let packet = &self.buffer[start..start + len];
        let Ok(header) = Packet::new_checked(packet) else {
            return;
        };
        // Sent as the far end of the tunnel: the kernel accepts no packet from the device
        // whose source is this host.
        let source = self.routes.current().subnet_address(header.destination());
        let mut message = [0; VNET_HDR_LEN + icmp::V4_MAX_LEN];
        let space = &mut message[self.vnet_len..];
        // An error means that the packet must not be answered (RFC 1122 section 3.2.2).
        let Ok(length) = icmp::fragmentation_needed(packet, source, mtu, space) else {
            return;
        };
        if self.tun.write(&message[..self.vnet_len + length]).is_ok() {
            self.counters.add(Counter::IcmpSent, 1);
        }
    }

    /// The kernel refused to cut a message because its datagrams exceed the MTU of the path.
    fn learn_path_mtu(&mut self, destination: SocketAddrV4) {
        let Ok(mtu) = self.transmitter.path_mtu(destination) else {
            return;
        };
        let inner = mtu.saturating_sub(OUTER_LEN);
        if self
            .pmtu_cache
            .insert(*destination.ip(), inner, Instant::now())
        {
            tracing::warn!(
                event = "path_mtu_low", peer = %destination.ip(), path_mtu = mtu, inner_mtu = inner,
                "packets of the overlay's MTU do not fit the path to this peer; set \"MTU\" in \
                 the network config's Backend, or raise the MTU of the interface"
            );
        }
    }
}

/// Sends the planned packets.
fn flush(plan: &mut SendPlan, transmitter: &mut Transmitter, heads: &[u8], packets: &[u8]) {
    if plan.is_empty() {
        return;
    }
    transmitter.flush(plan, Buffers { heads, packets });
    plan.clear();
    plan.set_max_segments(max_segments(transmitter.segmentation()));
}

/// The result of the lookup for one packet.
struct Forwarding {
    key: MessageKey,
    peer: PeerId,
    encapsulation: [u8; ENCAP_LEN],
    /// Length in bytes without padding.
    total_len: usize,
    dont_fragment: bool,
}

const fn max_segments(segmentation: Segmentation) -> u32 {
    match segmentation {
        Segmentation::Kernel => MAX_SEGMENTS,
        Segmentation::Off => 1,
    }
}
