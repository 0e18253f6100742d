//! The way in: from the tunnel port to the TUN device.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::deliver::{self, Deliverer};
use super::probes::ProbeReceiver;
use crate::dataplane::DeviceGone;
use crate::dataplane::counters::{Call, Counter, Counters, Kind};
use crate::dataplane::inbound::header_checks::{self, LocalVtep};
use crate::dataplane::ingress_policy::violation_log::ViolationLog;
use crate::dataplane::ingress_policy::{Enforcement, IngressPolicy};
use crate::dataplane::peer_counters::PeerCounters;
use crate::dataplane::tap::{Direction, Observation, ObservationPoint, Observer};
use crate::offload::coalesce::{PacketRef, classify_flat_giant};
use crate::route::peer::PeerId;
use crate::route::publish::RouteReader;
use crate::sys::udp::{DatagramInfo, ReceiveBatch, UdpSocket};
use crate::wire::ipv4::{self, Packet};
use crate::wire::vxlan::ecn;
use crate::wire::vxlan::{ENCAP_LEN, HEADER_LEN};

/// Datagrams of one call at most. What is received in one call can be merged, and 46 TCP
/// segments at an MTU of 1450 fill a packet of 64 KiB: two of them.
const SLOTS: usize = 92;
/// Datagrams of one call where they are long, so that they stay in the second level cache.
const SLOTS_WHEN_LONG: usize = 8;
/// Mean length from which datagrams are long: joined by the kernel.
const LONG: usize = 16 * 1024;
/// Each slot holds the longest datagram (64 KiB joined by the kernel, or a kernel peer's
/// unsegmented packet over a virtual link). Untouched pages cost nothing. The odd rest
/// spreads short datagrams over the sets of the caches: at a distance of 64 KiB all of them
/// would share a few.
const SLOT_LEN: usize = 65_536 + 1_600;
/// What one drain may cost, in bytes, after which the other direction has its turn.
const DRAIN_COST: usize = 512 * 1024;
/// What a datagram costs beside its bytes: whoever sends empty ones must not hold a worker.
const DATAGRAM_COST: usize = 256;

const _: () = assert!(
    ENCAP_LEN >= deliver::HEADROOM,
    "the encapsulation, once read, makes room for what goes before the packet"
);

/// The way in of one worker.
pub struct Decap {
    socket: Arc<UdpSocket>,
    vtep: LocalVtep,
    policy: IngressPolicy,
    routes: RouteReader,
    batch: ReceiveBatch,
    /// How many datagrams the next call asks for.
    slots: usize,
    deliverer: Deliverer,
    counters: Arc<Counters>,
    peers: Arc<PeerCounters>,
    observer: Observer,
    witness: ViolationLog,
    port: u16,
    probes: Option<ProbeReceiver>,
}

impl Decap {
    /// A way in from this socket, which is bound to this port.
    #[must_use]
    #[expect(
        clippy::too_many_arguments,
        reason = "a worker is put together in one place"
    )]
    pub fn new(
        (socket, port): (Arc<UdpSocket>, u16),
        vtep: LocalVtep,
        policy: IngressPolicy,
        routes: RouteReader,
        deliverer: Deliverer,
        counters: Arc<Counters>,
        peers: Arc<PeerCounters>,
        observer: Observer,
        probes: Option<ProbeReceiver>,
    ) -> Self {
        Self {
            observer,
            witness: ViolationLog::default(),
            port,
            probes,
            socket,
            vtep,
            policy,
            routes,
            batch: ReceiveBatch::new(SLOTS, SLOT_LEN),
            slots: SLOTS,
            deliverer,
            counters,
            peers,
        }
    }

    /// The socket to wait for.
    #[must_use]
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Moves what is queued, up to a budget.
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
                // WouldBlock: empty. Anything else is the echo of a datagram that some
                // socket sent earlier, read and so cleared.
                Err(_) => break,
            };
            let mut received = 0;
            let before = self.counters.get(Counter::UdpRead);
            for slot in 0..count {
                let info = self.batch.datagram(slot);
                received += info.len;
                cost += info.len + DATAGRAM_COST * self.take_datagram(info);
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

    fn judge_sender(&mut self, info: &DatagramInfo) -> Result<Sender, Counter> {
        self.policy.check_interface(info.interface)?;
        let address = *info.source.ip();
        let routes = self.routes.current();
        if self.policy.mode == Enforcement::Off {
            return Ok(Sender::Unchecked(routes.source(address)));
        }
        match self.policy.check_sender(routes, address) {
            Ok(peer) => Ok(Sender::Checked { address, peer }),
            Err(reason) if self.policy.mode == Enforcement::Enforce => Err(reason),
            Err(reason) => Ok(Sender::Passed {
                reason,
                peer: routes.source(address),
            }),
        }
    }

    /// Splits what the kernel joined, and takes each part; returns how many there were.
    fn take_datagram(&mut self, info: DatagramInfo) -> usize {
        let sender = self.judge_sender(&info);
        let end = info.start + info.len;
        // Nothing is parsed of what comes from a stranger.
        let flat = info.segment.filter(|segment| {
            sender.is_ok() && is_flat(&self.batch.buffer()[info.start..end], *segment)
        });
        let step = match info.segment {
            Some(segment) if flat.is_none() => segment.max(1),
            _ => info.len.max(1),
        };
        let mut at = info.start;
        let mut taken = 0;
        loop {
            taken += 1;
            let len = step.min(end - at);
            self.counters.add(Counter::UdpRead, 1);
            // As it came: opening it may change its ECN.
            let came = self.observer.is_open().then(|| self.copy(at, len));
            let opened = match sender {
                Err(reason) => Err(reason),
                Ok(_) if info.truncated => Err(Counter::InTruncated),
                Ok(sender) => self
                    .open(at, len, &info, sender)
                    .map(|packet| (packet, sender.peer()))
                    .map_err(|reason| match reason {
                        Counter::InNotIpv4 => self.not_ipv4(at, len, &info, sender),
                        _ => reason,
                    }),
            };
            if let Some(frame) = came {
                self.show(&info, &frame, opened.as_ref().map(drop).map_err(|it| *it));
            }
            match opened {
                Ok((packet, peer)) => {
                    if let Some(peer) = peer {
                        self.peers.received(peer, u64::from(packet.len));
                    }
                    self.take(packet, flat);
                }
                Err(reason) => self.counters.add(reason, 1),
            }
            at += len;
            if at >= end {
                return taken;
            }
        }
    }

    #[cold]
    fn copy(&mut self, at: usize, len: usize) -> Vec<u8> {
        self.batch.buffer()[at..at + len].to_vec()
    }

    /// Shows a frame to whoever captures, and what is inside if it is let in.
    #[cold]
    fn show(&self, info: &DatagramInfo, frame: &[u8], opened: Result<(), Counter>) {
        self.observer.show(&Observation {
            point: ObservationPoint::Outer {
                remote: info.source,
                port: self.port,
                tos: info.tos,
            },
            direction: Direction::In,
            pieces: [frame, &[]],
            dropped: opened.err().filter(|it| it.kind() == Kind::DropIn),
        });
        if let (Ok(()), Some(packet)) = (opened, frame.get(ENCAP_LEN..)) {
            self.observer.show_inner(Direction::In, packet, None);
        }
    }

    /// Checks the frame at `at` and combines ECN; returns where the inner packet lies.
    fn open(
        &mut self,
        at: usize,
        len: usize,
        info: &DatagramInfo,
        sender: Sender,
    ) -> Result<PacketRef, Counter> {
        let buffer = self.batch.buffer();
        let (packet_len, tos) = {
            let packet = header_checks::check_frame(&self.vtep, &buffer[at..at + len])?;
            let judged = match sender {
                Sender::Unchecked(_) => Ok(()),
                Sender::Passed { reason, .. } => Err(reason),
                Sender::Checked { address, peer } => {
                    let routes = self.routes.current();
                    self.policy
                        .check_packet(routes, address, peer.is_none(), &packet)
                }
            };
            if let Err(reason) = judged {
                if self.policy.mode == Enforcement::Enforce {
                    return Err(reason);
                }
                self.counters.add(Counter::PassedUnchecked, 1);
                self.witness.tell(*info.source.ip(), reason, &packet);
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

    /// A frame that passed all checks but that for its ethertype: a probe, where probes are
    /// wanted and the sender has a lease.
    #[cold]
    fn not_ipv4(&mut self, at: usize, len: usize, info: &DatagramInfo, sender: Sender) -> Counter {
        match (&mut self.probes, sender.peer()) {
            (Some(probes), Some(peer)) => {
                let inner = &self.batch.buffer()[at + HEADER_LEN..at + len];
                probes.take(peer, *info.source.ip(), inner)
            }
            _ => Counter::InNotIpv4,
        }
    }

    fn take(&mut self, packet: PacketRef, flat: Option<usize>) {
        let arena = self.batch.buffer();
        let segment = flat.and_then(|segment| u16::try_from(segment).ok());
        match segment.and_then(|segment| classify_flat_giant(&arena[packet.range()], segment)) {
            Some(vnet) => self.deliverer.push_whole(arena, packet, vnet),
            None => self.deliverer.push(arena, packet),
        }
    }
}

/// What is known of who sent a datagram.
#[derive(Clone, Copy)]
enum Sender {
    Checked {
        address: Ipv4Addr,
        /// None where it is allowed by configuration, not by a lease.
        peer: Option<PeerId>,
    },
    /// It does not belong, and may pass nonetheless.
    Passed {
        reason: Counter,
        peer: Option<PeerId>,
    },
    Unchecked(Option<PeerId>),
}

impl Sender {
    const fn peer(self) -> Option<PeerId> {
        match self {
            Self::Checked { peer, .. } | Self::Passed { peer, .. } | Self::Unchecked(peer) => peer,
        }
    }
}

/// Whether a datagram with a segment size is one frame and not joined ones: of a kernel
/// peer on this machine, the kernel passes on the segment size of an inner UDP super-packet
/// as if it were the outer one's.
fn is_flat(datagram: &[u8], segment: usize) -> bool {
    let inner = datagram.get(ENCAP_LEN..).map(Packet::new_checked);
    let Some(Ok(packet)) = inner else {
        return false;
    };
    let frame_len = ENCAP_LEN + packet.total_len();
    frame_len > segment && frame_len == datagram.len()
}
