//! Plans the sends of one drain.
//!
//! Packets of one flow to one peer that have the same length leave as one message, which the
//! kernel cuts (`UDP_SEGMENT`). The last packet may be shorter and closes the message. A plan
//! holds spans, not references, so it is reused from drain to drain without allocation.

use std::net::SocketAddrV4;
use std::ops::Range;

/// Maximum bytes of a message: UDP over IPv4 carries 65,507, and the frame with its headers
/// must stay below a device's `gso_max_size` of 65,536.
const MAX_MESSAGE_LEN: u32 = 65_000;
/// How many of the latest messages are searched for one that a packet can join.
const SEARCH_DEPTH: usize = 8;
const NONE: u32 = u32::MAX;

/// The place of some bytes in a buffer of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// Number of bytes.
    pub len: u32,
}

impl Span {
    /// The span as a range of indices.
    #[must_use]
    #[inline]
    pub const fn range(self) -> Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }
}

/// One datagram: a header block in the header arena, which may be empty, and a payload in the
/// packet buffer.
#[derive(Debug, Clone, Copy)]
pub struct Datagram {
    /// Bytes in the header arena.
    pub head: Span,
    /// Bytes in the packet buffer.
    pub payload: Span,
    next: u32,
}

/// What all packets of a message have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageKey {
    /// The peer's address and port.
    pub destination: SocketAddrV4,
    /// Number of the sending socket, which determines the source port.
    pub bucket: u16,
    /// Outer ECN codepoint.
    pub ecn: u8,
}

/// Datagrams of equal length; the last may be shorter.
#[derive(Debug, Clone, Copy)]
pub struct Message {
    /// What its datagrams have in common.
    pub key: MessageKey,
    /// Length of each datagram but the last.
    pub segment_len: u32,
    /// Number of datagrams.
    pub count: u32,
    total_len: u32,
    closed: bool,
    first: u32,
    last: u32,
}

impl Message {
    /// Bytes of the inner packets, each of which has `encapsulation` bytes before it.
    pub(super) fn inner_bytes(&self, encapsulation: u32) -> u64 {
        u64::from(self.total_len.saturating_sub(self.count * encapsulation))
    }
}

/// The sends of one drain.
#[derive(Debug)]
pub struct SendPlan {
    datagrams: Vec<Datagram>,
    messages: Vec<Message>,
    max_segments: u32,
}

impl SendPlan {
    /// An empty plan for messages of up to `max_segments` datagrams (1: no segmentation).
    #[must_use]
    pub fn new(max_segments: u32) -> Self {
        Self {
            datagrams: Vec::new(),
            messages: Vec::new(),
            max_segments: max_segments.max(1),
        }
    }

    /// Limits the datagrams per message from now on.
    pub(super) fn set_max_segments(&mut self, max_segments: u32) {
        self.max_segments = max_segments.max(1);
    }

    /// Adds a datagram behind all earlier ones of the same key.
    pub fn push(&mut self, key: MessageKey, head: Span, payload: Span) {
        let len = head.len + payload.len;
        let number = self.datagrams.len() as u32;
        self.datagrams.push(Datagram {
            head,
            payload,
            next: NONE,
        });
        if let Some(at) = self.joinable_message(key, len) {
            let message = &mut self.messages[at];
            self.datagrams[message.last as usize].next = number;
            message.last = number;
            message.count += 1;
            message.total_len += len;
            message.closed = len < message.segment_len;
            return;
        }
        self.messages.push(Message {
            key,
            segment_len: len,
            count: 1,
            total_len: len,
            closed: false,
            first: number,
            last: number,
        });
    }

    /// The latest message of this key, if a datagram of this length may join it. Joining an
    /// earlier message would reorder the flow.
    fn joinable_message(&self, key: MessageKey, len: u32) -> Option<usize> {
        let recent = self.messages.iter().enumerate().rev().take(SEARCH_DEPTH);
        let (at, message) = recent.into_iter().find(|(_, message)| message.key == key)?;
        let fits = !message.closed
            && len <= message.segment_len
            && message.count < self.max_segments
            && message.total_len + len <= MAX_MESSAGE_LEN;
        fits.then_some(at)
    }

    /// The messages, in the order in which they must leave.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The datagrams of a message, in order.
    pub(super) fn datagrams(&self, message: &Message) -> impl Iterator<Item = &Datagram> {
        let mut at = message.first;
        std::iter::from_fn(move || {
            let datagram = self.datagrams.get(at as usize)?;
            at = datagram.next;
            Some(datagram)
        })
    }

    /// Whether there is nothing to send.
    pub(super) fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Empties the plan and keeps its memory.
    pub fn clear(&mut self) {
        self.datagrams.clear();
        self.messages.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(port: u16, bucket: u16) -> MessageKey {
        MessageKey {
            destination: SocketAddrV4::new([192, 0, 2, 1].into(), port),
            bucket,
            ecn: 0,
        }
    }

    fn push(plan: &mut SendPlan, key: MessageKey, id: u32, len: u32) {
        plan.push(key, Span { start: id, len: 22 }, Span { start: 0, len });
    }

    fn shape(plan: &SendPlan) -> Vec<(u32, u32)> {
        plan.messages()
            .iter()
            .map(|m| (m.segment_len, m.count))
            .collect()
    }

    #[test]
    fn equal_lengths_join_and_a_shorter_one_closes() {
        let mut plan = SendPlan::new(64);
        for (id, len) in [1450, 1450, 700, 700, 1450].into_iter().enumerate() {
            push(&mut plan, key(1, 0), id as u32, len);
        }
        assert_eq!(shape(&plan), [(1472, 3), (722, 1), (1472, 1)]);
    }

    #[test]
    fn full_segments_of_a_64_kib_packet_pack_by_44() {
        let mut plan = SendPlan::new(64);
        for id in 0..92 {
            push(&mut plan, key(1, 0), id, 1450);
        }
        assert_eq!(shape(&plan), [(1472, 44), (1472, 44), (1472, 4)]);
    }

    #[test]
    fn one_at_a_time_without_segmentation() {
        let mut plan = SendPlan::new(1);
        for id in 0..3 {
            push(&mut plan, key(1, 0), id, 100);
        }
        assert_eq!(shape(&plan), [(122, 1); 3]);
    }

    proptest! {
        #[test]
        fn order_within_a_key_is_kept_and_no_rule_of_the_kernel_is_broken(
            packets in proptest::collection::vec((0u16..12, 0u16..3, 20u32..1500), 0..300),
            max in 1u32..70,
        ) {
            let mut plan = SendPlan::new(max);
            for (id, (port, bucket, len)) in packets.iter().enumerate() {
                push(&mut plan, key(port + 1, *bucket), id as u32, *len);
            }
            let mut seen = 0;
            for (port, bucket) in (0u16..12).flat_map(|p| (0u16..3).map(move |b| (p, b))) {
                let expected: Vec<u32> = packets.iter().enumerate()
                    .filter(|(_, p)| (p.0, p.1) == (port, bucket)).map(|(id, _)| id as u32).collect();
                let sent: Vec<u32> = plan.messages().iter()
                    .filter(|m| m.key == key(port + 1, bucket))
                    .flat_map(|m| plan.datagrams(m).map(|d| d.head.start)).collect();
                seen += sent.len();
                prop_assert_eq!(sent, expected);
            }
            prop_assert_eq!(seen, packets.len());
            for message in plan.messages() {
                let lens: Vec<u32> =
                    plan.datagrams(message).map(|d| d.head.len + d.payload.len).collect();
                prop_assert_eq!(lens.len() as u32, message.count);
                prop_assert!(message.count <= max);
                prop_assert!(lens.iter().sum::<u32>() <= MAX_MESSAGE_LEN);
                let (last, full) = lens.split_last().unwrap();
                prop_assert!(full.iter().all(|len| *len == message.segment_len));
                prop_assert!(*last <= message.segment_len);
            }
        }
    }
}
