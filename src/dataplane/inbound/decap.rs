//! From the tunnel port to the TUN device.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::deliver::{self, Deliverer};
use super::header_checks::{self, LocalVtep};
use super::probes::ProbeReceiver;
use crate::dataplane::counters::{Call, Counter, Counters, Kind};
use crate::dataplane::ingress_policy::violation_log::ViolationLog;
use crate::dataplane::ingress_policy::{Enforcement, IngressPolicy};
use crate::dataplane::peer_counters::PeerCounters;
use crate::dataplane::tap::{Direction, Observation, ObservationPoint, Observer};
use crate::dataplane::{DeviceGone, Options};
use crate::offload::coalesce::{PacketRef, classify_unsegmented_udp};
use crate::route::peer::PeerId;
use crate::route::publish::RouteReader;
use crate::sys::udp::{DatagramInfo, ReceiveBatch, UdpSocket};
use crate::wire::ipv4::{self, Packet};
use crate::wire::vxlan::ecn;
use crate::wire::vxlan::{ENCAP_LEN, HEADER_LEN};

/// Datagrams per system call. What one call receives can be merged; 46 TCP segments at an MTU
/// of 1450 fill a packet of 64 KiB, and this is enough for two.
const SLOTS: usize = 92;
/// Datagrams per system call while they are long, so that they fit into the L2 cache.
const SLOTS_WHEN_LONG: usize = 8;
/// Mean length from which datagrams count as long: the kernel joins them.
const LONG: usize = 16 * 1024;
/// Each slot holds the longest datagram: 64 KiB joined by the kernel, or a kernel peer's
/// unsegmented packet over a virtual link. Pages that are not touched cost nothing. The odd
/// length spreads short datagrams over the cache sets; 64 KiB apart, all would share a few.
const SLOT_LEN: usize = 65_536 + 1_600;
/// Budget of a drain in bytes. After it the other direction has its turn.
const DRAIN_COST: usize = 512 * 1024;
/// Cost of a datagram in addition to its bytes, so that a flood of empty ones does not
/// monopolize a worker.
const DATAGRAM_COST: usize = 256;

const _: () = assert!(
    ENCAP_LEN >= deliver::HEADROOM,
    "the virtio-net header is written over the encapsulation"
);

/// One worker's inbound direction.
pub struct Decap {
    socket: Arc<UdpSocket>,
    vtep: LocalVtep,
    policy: IngressPolicy,
    routes: RouteReader,
    batch: ReceiveBatch,
    /// Datagrams that the next call asks for.
    slots: usize,
    deliverer: Deliverer,
    counters: Arc<Counters>,
    peers: Arc<PeerCounters>,
    observer: Observer,
    violations: ViolationLog,
    port: u16,
    probes: Option<ProbeReceiver>,
}

impl Decap {
    /// Receives from `socket`, which is bound to the port in `options.receive`.
    #[must_use]
    pub fn new(
        socket: Arc<UdpSocket>,
        options: &Options,
        deliverer: Deliverer,
        counters: Arc<Counters>,
        peers: Arc<PeerCounters>,
    ) -> Self {
        Self {
            socket,
            vtep: options.vtep,
            policy: options.ingress_policy.clone(),
            routes: options.routes.reader(),
            batch: ReceiveBatch::new(SLOTS, SLOT_LEN),
            slots: SLOTS,
            deliverer,
            counters,
            peers,
            observer: options.taps.observer(),
            violations: ViolationLog::default(),
            port: options.receive.port(),
            probes: options.probes.clone().map(ProbeReceiver::new),
        }
    }

    #[must_use]
    pub(crate) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Processes queued datagrams up to a budget.
    ///
    /// # Errors
    /// Only when the device is gone for good.
    pub fn drain(&mut self) -> Result<(), DeviceGone> {
        let mut cost = 0;
        self.observer.refresh();
        self.policy.refresh();
        while cost < DRAIN_COST {
            self.counters.add(Counter::ReceiveCalls, 1);
            let wanted = self.slots;
            let count = match self.batch.receive(&self.socket, wanted) {
                Ok(count) => count,
                // WouldBlock: the queue is empty. Any other error is an ICMP error about an
                // earlier datagram, which reading it has cleared.
                Err(_) => break,
            };
            let mut received = 0;
            let before = self.counters.get(Counter::UdpRead);
            for slot in 0..count {
                let info = self.batch.datagram(slot);
                received += info.len;
                cost += info.len + DATAGRAM_COST * self.process(info);
            }
            let packets = self.counters.get(Counter::UdpRead) - before;
            if packets > 0 {
                self.counters.batch(Call::Receive, packets);
            }
            self.deliverer.flush(self.batch.buffer(), &self.observer)?;
            self.slots = if received >= LONG * count.max(1) {
                SLOTS_WHEN_LONG
            } else {
                SLOTS
            };
            if count < wanted {
                break;
            }
        }
        Ok(())
    }

    fn check_sender(&mut self, info: &DatagramInfo) -> Result<Sender, Counter> {
        self.policy.check_interface(info.interface)?;
        let address = *info.source.ip();
        let routes = self.routes.current();
        if self.policy.mode == Enforcement::Off {
            return Ok(Sender::Unchecked(routes.source(address)));
        }
        match self.policy.check_sender(routes, address) {
            Ok(peer) => Ok(Sender::Accepted { address, peer }),
            Err(reason) if self.policy.mode == Enforcement::Enforce => Err(reason),
            Err(reason) => Ok(Sender::Violating {
                reason,
                peer: routes.source(address),
            }),
        }
    }

    /// Splits what the kernel joined and processes each part. Returns their number.
    fn process(&mut self, info: DatagramInfo) -> usize {
        let sender = self.check_sender(&info);
        let end = info.start + info.len;
        // Datagrams of unknown senders are not parsed.
        let unsegmented = info.segment.filter(|segment| {
            sender.is_ok() && is_one_frame(&self.batch.buffer()[info.start..end], *segment)
        });
        let step = match info.segment {
            Some(segment) if unsegmented.is_none() => segment.max(1),
            _ => info.len.max(1),
        };
        let mut at = info.start;
        let mut processed = 0;
        loop {
            processed += 1;
            let len = step.min(end - at);
            self.counters.add(Counter::UdpRead, 1);
            // A copy for captures, because decapsulation may change the inner ECN field.
            let received = self.observer.is_active().then(|| self.copy(at, len));
            let result = match sender {
                Err(reason) => Err(reason),
                Ok(_) if info.truncated => Err(Counter::InTruncated),
                Ok(sender) => self
                    .decapsulate(at, len, &info, sender)
                    .map(|packet| (packet, sender.peer()))
                    .map_err(|reason| match reason {
                        Counter::InNotIpv4 => self.receive_probe(at, len, &info, sender),
                        _ => reason,
                    }),
            };
            if let Some(frame) = received {
                self.observe(&info, &frame, result.as_ref().map(drop).map_err(|it| *it));
            }
            match result {
                Ok((packet, peer)) => {
                    if let Some(peer) = peer {
                        self.peers.received(peer, u64::from(packet.len));
                    }
                    self.deliver(packet, unsegmented);
                }
                Err(reason) => self.counters.add(reason, 1),
            }
            at += len;
            if at >= end {
                return processed;
            }
        }
    }

    #[cold]
    fn copy(&mut self, at: usize, len: usize) -> Vec<u8> {
        self.batch.buffer()[at..at + len].to_vec()
    }

    /// Shows a frame to captures, and the inner packet if it was accepted.
    #[cold]
    fn observe(&self, info: &DatagramInfo, frame: &[u8], result: Result<(), Counter>) {
        self.observer.report(&Observation {
            point: ObservationPoint::Outer {
                remote: info.source,
                port: self.port,
                tos: info.tos,
            },
            direction: Direction::In,
            pieces: [frame, &[]],
            dropped: result.err().filter(|it| it.kind() == Kind::DropIn),
        });
        if let (Ok(()), Some(packet)) = (result, frame.get(ENCAP_LEN..)) {
            self.observer.report_inner(Direction::In, packet, None);
        }
    }

    /// Checks the frame at `at` and combines its ECN fields. Returns the place of the inner
    /// packet.
    fn decapsulate(
        &mut self,
        at: usize,
        len: usize,
        info: &DatagramInfo,
        sender: Sender,
    ) -> Result<PacketRef, Counter> {
        let buffer = self.batch.buffer();
        let (packet_len, tos) = {
            let packet = header_checks::check_frame(&self.vtep, &buffer[at..at + len])?;
            let accepted = match sender {
                Sender::Unchecked(_) => Ok(()),
                Sender::Violating { reason, .. } => Err(reason),
                Sender::Accepted { address, peer } => {
                    let routes = self.routes.current();
                    self.policy
                        .check_packet(routes, address, peer.is_none(), &packet)
                }
            };
            if let Err(reason) = accepted {
                if self.policy.mode == Enforcement::Enforce {
                    return Err(reason);
                }
                self.counters.add(Counter::PassedUnchecked, 1);
                self.violations.record(*info.source.ip(), reason, &packet);
            }
            (packet.total_len(), packet.tos())
        };
        match ecn::decapsulate(info.tos, tos) {
            ecn::Decapsulated::Unchanged => {}
            ecn::Decapsulated::Drop => return Err(Counter::InEcn),
            ecn::Decapsulated::Set(codepoint) => {
                let header = &mut buffer[at + ENCAP_LEN..at + len];
                ipv4::set_tos(header, (tos & !ecn::MASK) | codepoint);
            }
        }
        Ok(PacketRef {
            offset: (at + ENCAP_LEN) as u32,
            len: packet_len as u32,
        })
    }

    /// Handles a frame whose only fault is its ethertype: a probe, if probes are received and
    /// the sender has a lease. Returns the counter for it.
    #[cold]
    fn receive_probe(
        &mut self,
        at: usize,
        len: usize,
        info: &DatagramInfo,
        sender: Sender,
    ) -> Counter {
        match (&mut self.probes, sender.peer()) {
            (Some(probes), Some(peer)) => {
                let inner = &self.batch.buffer()[at + HEADER_LEN..at + len];
                probes.receive(peer, *info.source.ip(), inner)
            }
            _ => Counter::InNotIpv4,
        }
    }

    fn deliver(&mut self, packet: PacketRef, unsegmented: Option<usize>) {
        let arena = self.batch.buffer();
        let segment = unsegmented.and_then(|segment| u16::try_from(segment).ok());
        match segment.and_then(|segment| classify_unsegmented_udp(&arena[packet.range()], segment))
        {
            Some(vnet) => self.deliverer.push_whole(arena, packet, vnet),
            None => self.deliverer.push(arena, packet),
        }
    }
}

/// The result of the sender check.
#[derive(Clone, Copy)]
enum Sender {
    Accepted {
        address: Ipv4Addr,
        /// None if it is allowed by configuration and has no lease.
        peer: Option<PeerId>,
    },
    /// Refused, but violations are only logged.
    Violating {
        reason: Counter,
        peer: Option<PeerId>,
    },
    Unchecked(Option<PeerId>),
}

impl Sender {
    const fn peer(self) -> Option<PeerId> {
        match self {
            Self::Accepted { peer, .. } | Self::Violating { peer, .. } | Self::Unchecked(peer) => {
                peer
            }
        }
    }
}

/// Whether a datagram with a segment size is a single frame. From a kernel peer on this
/// machine, the kernel passes on the segment size of an inner UDP super-packet as if it were
/// that of the outer datagram.
fn is_one_frame(datagram: &[u8], segment: usize) -> bool {
    let inner = datagram.get(ENCAP_LEN..).map(Packet::new_checked);
    let Some(Ok(packet)) = inner else {
        return false;
    };
    let frame_len = ENCAP_LEN + packet.total_len();
    frame_len > segment && frame_len == datagram.len()
}
