//! Probes of peers, on their way from the packet threads to the control side.
//!
//! A packet thread only reads the message, notes when it came, and queues it: bounded, and
//! never more of a peer than a peer of ours sends. Who answers, and whether, is decided on the
//! other side ([`crate::wire::probe`] tells what they say).

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
const WAITING: usize = 1024;
/// Peers that are told apart in the count of messages a second; more share places.
const PLACES: usize = 4096;
/// Messages of one place in one second: a peer sends one request and one reply.
const A_SECOND: u8 = 8;

/// A message of a peer.
#[derive(Debug, Clone, Copy)]
pub struct ReceivedProbe {
    /// The outer source: a lease's address.
    pub source: Ipv4Addr,
    /// The inner source.
    pub mac: MacAddr,
    /// What it says.
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

/// What the control side reads, and what it counts.
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
    /// An empty one; `wake` is called by a packet thread after it put something in, and must
    /// not wait.
    #[must_use]
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            queue: ArrayQueue::new(WAITING),
            wake: Box::new(wake),
            events: Default::default(),
        }
    }

    /// The oldest message that waits.
    #[must_use]
    pub fn next(&self) -> Option<ReceivedProbe> {
        self.queue.pop()
    }

    /// Counts one of what only the control side sees; other counters are none of it.
    pub fn count(&self, event: Counter) {
        if let Some(at) = EVENTS.iter().position(|known| *known == event) {
            self.events[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was counted so far.
    pub(crate) fn events(&self) -> impl Iterator<Item = (Counter, u64)> {
        let amounts = self.events.iter().map(|cell| cell.load(Ordering::Relaxed));
        EVENTS.into_iter().zip(amounts)
    }
}

/// One packet thread's side of an inbox.
pub struct ProbeReceiver {
    inbox: Arc<ProbeQueue>,
    /// Seconds since the start, and messages in that second.
    places: Box<[(u32, u8)]>,
    start: Instant,
}

impl ProbeReceiver {
    /// A way into this inbox.
    #[must_use]
    pub fn new(inbox: Arc<ProbeQueue>) -> Self {
        Self {
            inbox,
            places: vec![(0, 0); PLACES].into_boxed_slice(),
            start: Instant::now(),
        }
    }

    /// Takes a frame, from the inner Ethernet header on, that a peer sent to us; returns
    /// under which name it is counted.
    pub fn take(&mut self, peer: PeerId, source: Ipv4Addr, frame: &[u8]) -> Counter {
        self.take_at(peer, source, frame, Instant::now())
    }

    fn take_at(&mut self, peer: PeerId, source: Ipv4Addr, frame: &[u8], at: Instant) -> Counter {
        let Some(header) = ethernet::parse(frame) else {
            return Counter::InShort;
        };
        if header.ethertype != ETHERTYPE_EXPERIMENTAL {
            return Counter::InNotIpv4;
        }
        let Some(message) = probe::Message::parse(&frame[ethernet::HEADER_LEN..]) else {
            return Counter::InProbeMalformed;
        };
        if !self.has_room(peer, at.saturating_duration_since(self.start)) {
            return Counter::InProbeFlood;
        }
        let heard = ReceivedProbe {
            source,
            mac: header.source,
            message,
            at,
        };
        if self.inbox.queue.push(heard).is_err() {
            return Counter::InProbeFlood;
        }
        (self.inbox.wake)();
        Counter::ProbesIn
    }

    fn has_room(&mut self, peer: PeerId, now: Duration) -> bool {
        let place = &mut self.places[peer.0 as usize % PLACES];
        let second = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        if place.0 != second {
            *place = (second, 0);
        }
        if place.1 == A_SECOND {
            return false;
        }
        place.1 += 1;
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
    fn a_message_wakes_the_reader_and_what_is_none_does_not() {
        let woken = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&woken);
        let inbox = Arc::new(ProbeQueue::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        let mut intake = ProbeReceiver::new(Arc::clone(&inbox));
        let good = frame();
        let mut other_type = good.clone();
        other_type[13] = 0xb6;
        for (bytes, expected) in [
            (&good[..], Counter::ProbesIn),
            (&good[..50], Counter::InProbeMalformed),
            (&good[..14], Counter::InProbeMalformed),
            (&other_type, Counter::InNotIpv4),
        ] {
            assert_eq!(intake.take(PeerId(1), SOURCE, bytes), expected);
        }
        let heard = inbox.next().unwrap();
        assert_eq!((heard.source, heard.mac), (SOURCE, MAC));
        assert!(inbox.next().is_none());
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        inbox.count(Counter::ProbeReplays);
        let events: Vec<_> = inbox.events().filter(|(_, amount)| *amount > 0).collect();
        assert_eq!(events, [(Counter::ProbeReplays, 1)]);
    }

    #[test]
    fn a_flood_of_one_peer_fills_neither_the_queue_nor_anothers_place() {
        let inbox = Arc::new(ProbeQueue::new(|| ()));
        let mut intake = ProbeReceiver::new(Arc::clone(&inbox));
        let (good, start) = (frame(), intake.start);
        let mut taken = |peer, seconds| {
            let at = start + Duration::from_secs(seconds);
            let verdicts = (0..1000).map(|_| intake.take_at(PeerId(peer), SOURCE, &good, at));
            verdicts.filter(|it| *it == Counter::ProbesIn).count()
        };
        assert_eq!(taken(1, 0), usize::from(A_SECOND));
        assert_eq!(taken(2, 0), usize::from(A_SECOND));
        assert_eq!(taken(1, 1), usize::from(A_SECOND));
        // All peers at once: as many as may wait, and no more.
        let all: usize = (0..1000).map(|peer| taken(peer, 5)).sum();
        assert_eq!(all, WAITING - 3 * usize::from(A_SECOND));
    }
}
