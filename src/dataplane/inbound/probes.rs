//! Hands probes of peers from the packet threads to the control side.
//!
//! A packet thread only parses the message, notes the time and queues it. Queue and rate are
//! bounded. The control side decides whether to answer ([`crate::wire::probe`] describes the
//! messages).

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;

use crate::dataplane::counters::Counter;
use crate::route::peer::PeerId;
use crate::wire::ethernet::{self, ETHERTYPE_EXPERIMENTAL};
use crate::wire::{MacAddr, probe};

/// Messages that may wait for the control side.
const QUEUE_LEN: usize = 1024;
/// Rate counters. Peers beyond this number share one.
const RATE_SLOTS: usize = 4096;
/// Messages per second and rate counter. A peer of ours sends one request and one reply.
const MAX_RATE: u8 = 8;

/// A probe message of a peer.
#[derive(Debug, Clone, Copy)]
pub struct ReceivedProbe {
    /// The outer source: a lease's address.
    pub source: Ipv4Addr,
    /// The inner source.
    pub mac: MacAddr,
    /// The message.
    pub message: probe::Message,
    /// When it was read from the socket.
    pub at: Instant,
}

const EVENTS: [Counter; 5] = [
    Counter::ProbesSent,
    Counter::ProbesAnswered,
    Counter::ProbeReplays,
    Counter::ProbeExcess,
    Counter::ProbeStrays,
];

/// The queue of received probes, and the counters of the control side.
pub struct ProbeQueue {
    queue: ArrayQueue<ReceivedProbe>,
    wake: Box<dyn Fn() + Send + Sync>,
    events: [AtomicU64; EVENTS.len()],
}

impl fmt::Debug for ProbeQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeQueue").finish_non_exhaustive()
    }
}

impl ProbeQueue {
    /// An empty queue. Packet threads call `wake` after they queued a message; it must not
    /// block.
    #[must_use]
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            queue: ArrayQueue::new(QUEUE_LEN),
            wake: Box::new(wake),
            events: Default::default(),
        }
    }

    /// The oldest message in the queue.
    #[must_use]
    pub fn next(&self) -> Option<ReceivedProbe> {
        self.queue.pop()
    }

    /// Counts an event that only the control side sees. Other counters are ignored.
    pub fn count(&self, event: Counter) {
        if let Some(at) = EVENTS.iter().position(|known| *known == event) {
            self.events[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counters of the control side.
    pub(crate) fn events(&self) -> impl Iterator<Item = (Counter, u64)> {
        let amounts = self.events.iter().map(|cell| cell.load(Ordering::Relaxed));
        EVENTS.into_iter().zip(amounts)
    }
}

/// One packet thread's side of the queue.
pub struct ProbeReceiver {
    queue: Arc<ProbeQueue>,
    /// For each slot, a second since the start and the messages in it.
    rates: Box<[(u32, u8)]>,
    start: Instant,
}

impl ProbeReceiver {
    /// Puts messages into this queue.
    #[must_use]
    pub fn new(queue: Arc<ProbeQueue>) -> Self {
        Self {
            queue,
            rates: vec![(0, 0); RATE_SLOTS].into_boxed_slice(),
            start: Instant::now(),
        }
    }

    /// Handles a frame of a peer, from the inner Ethernet header on. Returns the counter for
    /// it.
    pub fn receive(&mut self, peer: PeerId, source: Ipv4Addr, frame: &[u8]) -> Counter {
        self.receive_at(peer, source, frame, Instant::now())
    }

    fn receive_at(&mut self, peer: PeerId, source: Ipv4Addr, frame: &[u8], at: Instant) -> Counter {
        let Some(header) = ethernet::parse(frame) else {
            return Counter::InShort;
        };
        if header.ethertype != ETHERTYPE_EXPERIMENTAL {
            return Counter::InNotIpv4;
        }
        let Some(message) = probe::Message::parse(&frame[ethernet::HEADER_LEN..]) else {
            return Counter::InProbeMalformed;
        };
        if !self.is_within_rate(peer, at.saturating_duration_since(self.start)) {
            return Counter::InProbeFlood;
        }
        let probe = ReceivedProbe {
            source,
            mac: header.source,
            message,
            at,
        };
        if self.queue.queue.push(probe).is_err() {
            return Counter::InProbeFlood;
        }
        (self.queue.wake)();
        Counter::ProbesIn
    }

    fn is_within_rate(&mut self, peer: PeerId, now: Duration) -> bool {
        let rate = &mut self.rates[peer.0 as usize % RATE_SLOTS];
        let second = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        if rate.0 != second {
            *rate = (second, 0);
        }
        if rate.1 == MAX_RATE {
            return false;
        }
        rate.1 += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Vni;
    use crate::wire::probe::{Kind, Message, Seen};
    use std::sync::atomic::AtomicUsize;

    const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn frame() -> Vec<u8> {
        let message = Message {
            kind: Kind::Request,
            length: 84,
            nonce: 7,
            session: 1,
            number: 1,
            seen: Seen::default(),
            held: 0,
        };
        message.datagram(Vni::DEFAULT, MAC, MacAddr([2; 6]))[8..].to_vec()
    }

    #[test]
    fn only_a_valid_message_wakes_the_reader() {
        let woken = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&woken);
        let queue = Arc::new(ProbeQueue::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        let mut receiver = ProbeReceiver::new(Arc::clone(&queue));
        let good = frame();
        let mut other_type = good.clone();
        other_type[13] = 0xb6;
        for (bytes, expected) in [
            (&good[..], Counter::ProbesIn),
            (&good[..50], Counter::InProbeMalformed),
            (&good[..14], Counter::InProbeMalformed),
            (&other_type, Counter::InNotIpv4),
        ] {
            assert_eq!(receiver.receive(PeerId(1), SOURCE, bytes), expected);
        }
        let probe = queue.next().unwrap();
        assert_eq!((probe.source, probe.mac), (SOURCE, MAC));
        assert!(queue.next().is_none());
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        queue.count(Counter::ProbeReplays);
        let events: Vec<_> = queue.events().filter(|(_, amount)| *amount > 0).collect();
        assert_eq!(events, [(Counter::ProbeReplays, 1)]);
    }

    #[test]
    fn a_flood_of_one_peer_affects_no_other() {
        let queue = Arc::new(ProbeQueue::new(|| ()));
        let mut receiver = ProbeReceiver::new(Arc::clone(&queue));
        let (good, start) = (frame(), receiver.start);
        let mut queued = |peer, seconds| {
            let at = start + Duration::from_secs(seconds);
            let counted = (0..1000).map(|_| receiver.receive_at(PeerId(peer), SOURCE, &good, at));
            counted.filter(|it| *it == Counter::ProbesIn).count()
        };
        assert_eq!(queued(1, 0), usize::from(MAX_RATE));
        assert_eq!(queued(2, 0), usize::from(MAX_RATE));
        assert_eq!(queued(1, 1), usize::from(MAX_RATE));
        // All peers at once fill the queue, and no more.
        let all: usize = (0..1000).map(|peer| queued(peer, 5)).sum();
        assert_eq!(all, QUEUE_LEN - 3 * usize::from(MAX_RATE));
    }
}
