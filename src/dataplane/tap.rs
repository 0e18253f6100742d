//! Packet captures.
//!
//! Without a tap, captures cost one relaxed load per drain. With one, packets that match its
//! filter are copied into a bounded queue. When it is full they are not captured, and counted
//! as missed: forwarding never waits for a reader.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_queue::ArrayQueue;
use ipnet::Ipv4Net;

use super::counters::Counter;
use crate::dataplane::generation::{Cached, GenerationCell};
use crate::wire::ipv4::Packet;
use crate::wire::vxlan::ENCAP_LEN;

/// Packets in the queue of a tap.
const QUEUE_PACKETS: usize = 8192;
/// Bytes in the queue of a tap.
const QUEUE_BYTES: usize = 16 << 20;

/// Where a packet was observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObservationPoint {
    /// At the device: an IPv4 packet.
    Inner,
    /// At the UDP socket: a frame, from the VXLAN header on.
    Outer {
        /// Address and port of the other host.
        remote: SocketAddrV4,
        /// Local port.
        port: u16,
        /// Outer type of service.
        tos: u8,
    },
}

/// Direction of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the network to the containers.
    In,
    /// From the containers to the network.
    Out,
}

/// A packet that a worker has observed, in up to two pieces.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    /// Where it was observed.
    pub point: ObservationPoint,
    /// Its direction.
    pub direction: Direction,
    /// Its bytes.
    pub pieces: [&'a [u8]; 2],
    /// Why it was dropped.
    pub dropped: Option<Counter>,
}

impl Observation<'_> {
    fn len(&self) -> usize {
        self.pieces[0].len() + self.pieces[1].len()
    }

    /// Inner source and destination, if there is an inner packet.
    fn inner_addresses(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let skip = match self.point {
            ObservationPoint::Inner => 0,
            ObservationPoint::Outer { .. } => ENCAP_LEN,
        };
        // If there are two pieces, the first holds the headers.
        let bytes = self.pieces.iter().find(|piece| !piece.is_empty())?;
        let addresses = bytes.get(skip + 12..skip + 20)?;
        let (source, destination) = addresses.split_first_chunk::<4>()?;
        let destination = destination.first_chunk::<4>()?;
        Some(((*source).into(), (*destination).into()))
    }
}

/// Which packets a capture records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureFilter {
    /// Packets at the device.
    pub inner: bool,
    /// Frames at the socket.
    pub outer: bool,
    /// Only those of this peer: its address, and its subnet if known.
    pub peer: Option<(Ipv4Addr, Option<Ipv4Net>)>,
    /// Only those with this inner source or destination.
    pub host: Option<Ipv4Addr>,
    /// Only dropped packets.
    pub dropped: bool,
    /// Bytes that are kept of each packet.
    pub snap_len: usize,
}

impl CaptureFilter {
    fn matches(&self, observation: &Observation<'_>) -> bool {
        let view = match observation.point {
            ObservationPoint::Inner => self.inner,
            ObservationPoint::Outer { .. } => self.outer,
        };
        if !view || (self.dropped && observation.dropped.is_none()) {
            return false;
        }
        if self.peer.is_none() && self.host.is_none() {
            return true;
        }
        let addresses = observation.inner_addresses();
        let either = |wanted: &dyn Fn(Ipv4Addr) -> bool| {
            addresses.is_some_and(|(source, destination)| wanted(source) || wanted(destination))
        };
        let of_peer = self.peer.is_none_or(|(address, subnet)| {
            matches!(observation.point, ObservationPoint::Outer { remote, .. } if *remote.ip() == address)
                || subnet.is_some_and(|subnet| either(&|inner| subnet.contains(&inner)))
        });
        of_peer && self.host.is_none_or(|host| either(&|inner| inner == host))
    }
}

/// A packet in the queue of a tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedPacket {
    /// Time of capture in nanoseconds since 1970.
    pub nanoseconds: u64,
    /// Where it was observed.
    pub point: ObservationPoint,
    /// Its direction.
    pub direction: Direction,
    /// Its first bytes.
    pub bytes: Vec<u8>,
    /// Its full length in bytes.
    pub len: usize,
    /// Why it was dropped.
    pub dropped: Option<Counter>,
}

/// The queue of one capture.
#[derive(Debug)]
pub struct Tap {
    filter: CaptureFilter,
    queue: ArrayQueue<CapturedPacket>,
    bytes: AtomicUsize,
    missed: AtomicU64,
}

impl Tap {
    fn new(filter: CaptureFilter) -> Self {
        Self {
            filter,
            queue: ArrayQueue::new(QUEUE_PACKETS),
            bytes: AtomicUsize::new(0),
            missed: AtomicU64::new(0),
        }
    }

    fn capture(&self, observation: &Observation<'_>) {
        if !self.filter.matches(observation) {
            return;
        }
        let kept = observation.len().min(self.filter.snap_len);
        if self.bytes.fetch_add(kept, Ordering::Relaxed) + kept > QUEUE_BYTES {
            self.miss(kept);
            return;
        }
        let mut bytes = Vec::with_capacity(kept);
        for piece in observation.pieces {
            let room = kept - bytes.len();
            bytes.extend_from_slice(piece.get(..room).unwrap_or(piece));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let captured = CapturedPacket {
            nanoseconds: now
                .ok()
                .and_then(|since| u64::try_from(since.as_nanos()).ok())
                .unwrap_or(0),
            point: observation.point,
            direction: observation.direction,
            bytes,
            len: observation.len(),
            dropped: observation.dropped,
        };
        if self.queue.push(captured).is_err() {
            self.miss(kept);
        }
    }

    fn miss(&self, kept: usize) {
        self.bytes.fetch_sub(kept, Ordering::Relaxed);
        self.missed.fetch_add(1, Ordering::Relaxed);
    }

    /// The oldest packet in the queue.
    #[must_use]
    pub fn next(&self) -> Option<CapturedPacket> {
        let captured = self.queue.pop()?;
        self.bytes
            .fetch_sub(captured.bytes.len(), Ordering::Relaxed);
        Some(captured)
    }

    /// Packets in the queue.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.queue.len() as u64
    }

    /// Packets that were not captured because the queue was full.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

/// All taps of a packet loop. Clones share them.
#[derive(Debug, Clone)]
pub struct Taps(Arc<GenerationCell<Vec<Arc<Tap>>>>);

impl Default for Taps {
    fn default() -> Self {
        Self(Arc::new(GenerationCell::new(Vec::new())))
    }
}

impl Taps {
    /// Starts a capture. It ends when the returned value is dropped.
    #[must_use]
    pub fn open(&self, filter: CaptureFilter) -> OpenTap {
        let tap = Arc::new(Tap::new(filter));
        self.0.change(|list| list.push(Arc::clone(&tap)));
        OpenTap {
            taps: self.clone(),
            tap,
        }
    }

    /// Whether a capture records packets at the socket.
    #[must_use]
    pub fn is_outer_observed(&self) -> bool {
        self.0.with(|list| list.iter().any(|tap| tap.filter.outer))
    }

    /// A worker's handle.
    #[must_use]
    pub fn observer(&self) -> Observer {
        Observer {
            taps: self.clone(),
            list: self.0.copy(),
        }
    }
}

/// A running capture.
#[derive(Debug)]
pub struct OpenTap {
    taps: Taps,
    tap: Arc<Tap>,
}

impl std::ops::Deref for OpenTap {
    type Target = Tap;

    fn deref(&self) -> &Tap {
        &self.tap
    }
}

impl Drop for OpenTap {
    fn drop(&mut self) {
        self.taps
            .0
            .change(|list| list.retain(|tap| !Arc::ptr_eq(tap, &self.tap)));
    }
}

/// A worker's handle: the taps as of its last refresh.
#[derive(Debug)]
pub struct Observer {
    taps: Taps,
    list: Cached<Vec<Arc<Tap>>>,
}

impl Observer {
    /// Takes over new taps. Call it once per drain.
    #[inline]
    pub fn refresh(&mut self) {
        self.taps.0.refresh(&mut self.list);
    }

    /// Whether there is a capture.
    #[must_use]
    #[inline]
    pub const fn is_active(&self) -> bool {
        !self.list.value.is_empty()
    }

    /// Shows a packet to all captures.
    #[cold]
    pub fn report(&self, observation: &Observation<'_>) {
        for tap in &self.list.value {
            tap.capture(observation);
        }
    }

    /// Shows a packet at the device to all captures.
    #[inline]
    pub(crate) fn report_inner(
        &self,
        direction: Direction,
        packet: &[u8],
        dropped: Option<Counter>,
    ) {
        if self.is_active() {
            // Cut off padding.
            let packet = Packet::new_checked(packet).map_or(packet, |checked| checked.bytes());
            self.report(&Observation {
                point: ObservationPoint::Inner,
                direction,
                pieces: [packet, &[]],
                dropped,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOTE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 8472);
    const ALL: CaptureFilter = CaptureFilter {
        inner: true,
        outer: true,
        peer: None,
        host: None,
        dropped: false,
        snap_len: 65_535,
    };

    fn packet(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend(source);
        packet.extend(destination);
        packet.extend([1, 2, 3, 4]);
        packet
    }

    fn frame(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0; ENCAP_LEN];
        frame.extend(packet(source, destination));
        frame
    }

    fn outer(bytes: &[u8], remote: SocketAddrV4) -> Observation<'_> {
        Observation {
            point: ObservationPoint::Outer {
                remote,
                port: 8472,
                tos: 0,
            },
            direction: Direction::In,
            pieces: [bytes, &[]],
            dropped: None,
        }
    }

    #[test]
    fn a_capture_lasts_from_opening_to_dropping() {
        let taps = Taps::default();
        let mut observer = taps.observer();
        observer.refresh();
        assert!(!observer.is_active());
        let tap = taps.open(ALL);
        observer.refresh();
        let bytes = packet([10, 5, 1, 2], [10, 5, 2, 2]);
        observer.report_inner(Direction::Out, &bytes, Some(Counter::OutNoRoute));
        let seen = tap.next().unwrap();
        assert_eq!((&seen.bytes, seen.len), (&bytes, 24));
        assert_eq!(seen.dropped, Some(Counter::OutNoRoute));
        assert!(tap.next().is_none());
        drop(tap);
        observer.refresh();
        assert!(!observer.is_active());
    }

    #[test]
    fn a_filter_matches_both_headers() {
        let ours = frame([10, 5, 2, 9], [10, 5, 1, 2]);
        let peer = CaptureFilter {
            peer: Some((*REMOTE.ip(), "10.5.2.0/24".parse().ok())),
            ..ALL
        };
        assert!(peer.matches(&outer(&ours, REMOTE)));
        let other_host = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 9), 1);
        assert!(
            peer.matches(&outer(&ours, other_host)),
            "by the inner address"
        );
        let other = frame([10, 5, 3, 9], [10, 5, 1, 2]);
        assert!(!peer.matches(&outer(&other, other_host)));
        assert!(peer.matches(&outer(&[1, 2], REMOTE)), "too short for more");
        let host = CaptureFilter {
            host: Some(Ipv4Addr::new(10, 5, 1, 2)),
            ..ALL
        };
        assert!(host.matches(&outer(&ours, REMOTE)));
        assert!(!host.matches(&outer(&[1, 2], REMOTE)));
        let dropped = CaptureFilter {
            dropped: true,
            ..ALL
        };
        assert!(!dropped.matches(&outer(&ours, REMOTE)));
        let inner = CaptureFilter {
            outer: false,
            ..ALL
        };
        assert!(!inner.matches(&outer(&ours, REMOTE)));
    }

    #[test]
    fn a_slow_reader_misses_packets() {
        let taps = Taps::default();
        let tap = taps.open(ALL);
        let mut observer = taps.observer();
        observer.refresh();
        let bytes = frame([10, 5, 1, 2], [10, 5, 2, 2]);
        for _ in 0..QUEUE_PACKETS + 10 {
            observer.report(&outer(&bytes, REMOTE));
        }
        assert_eq!(tap.missed(), 10);
        assert_eq!(std::iter::from_fn(|| tap.next()).count(), QUEUE_PACKETS);
        let large = vec![0; 1 << 20];
        let whole = CaptureFilter {
            snap_len: usize::MAX,
            ..ALL
        };
        let tap = taps.open(whole);
        observer.refresh();
        for _ in 0..20 {
            observer.report(&outer(&large, REMOTE));
        }
        assert_eq!(tap.missed(), 4);
        assert_eq!(tap.bytes.load(Ordering::Relaxed), QUEUE_BYTES);
    }

    #[test]
    fn captured_bytes_are_cut_and_pieces_joined() {
        let taps = Taps::default();
        let tap = taps.open(CaptureFilter { snap_len: 5, ..ALL });
        let mut observer = taps.observer();
        observer.refresh();
        observer.report(&Observation {
            pieces: [&[1, 2, 3], &[4, 5, 6, 7]],
            ..outer(&[], REMOTE)
        });
        let seen = tap.next().unwrap();
        assert_eq!((seen.bytes, seen.len), (vec![1, 2, 3, 4, 5], 7));
    }
}
