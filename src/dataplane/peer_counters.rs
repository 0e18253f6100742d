//! Packets and bytes per peer. Each worker has its own counters.
//!
//! The counters lie in pages, which are allocated when the first of their peers is counted: an
//! overlay with up to 256 hosts needs one page, and never allocates again.

use std::iter::Sum;
use std::ops::Sub;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::route::peer::PeerId;

const PAGE_LEN: usize = 256;
/// Enough for peer numbers up to 65,535, the maximum number of leases.
const PAGES: usize = 256;

/// Traffic between this host and a peer: inner IP packets, without encapsulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerTotals {
    /// Packets encapsulated for it, whether sent or dropped at the socket.
    pub out_packets: u64,
    /// Bytes of these packets.
    pub out_bytes: u64,
    /// Packets from its public address that passed all checks.
    pub in_packets: u64,
    /// Bytes of these packets.
    pub in_bytes: u64,
}

impl PeerTotals {
    fn with(self, other: Self, merge: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            out_packets: merge(self.out_packets, other.out_packets),
            out_bytes: merge(self.out_bytes, other.out_bytes),
            in_packets: merge(self.in_packets, other.in_packets),
            in_bytes: merge(self.in_bytes, other.in_bytes),
        }
    }
}

impl Sum for PeerTotals {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| {
            sum.with(part, u64::wrapping_add)
        })
    }
}

impl Sub for PeerTotals {
    type Output = Self;

    /// The traffic since `earlier`; 0 if that is larger.
    fn sub(self, earlier: Self) -> Self {
        self.with(earlier, u64::saturating_sub)
    }
}

/// The counters of one peer: half a cache line, written by one worker only.
#[derive(Debug, Default)]
#[repr(align(32))]
struct Cell {
    out_packets: AtomicU64,
    out_bytes: AtomicU64,
    in_packets: AtomicU64,
    in_bytes: AtomicU64,
}

type CounterPage = Box<[Cell; PAGE_LEN]>;

/// One worker's counters. Only the worker writes, with plain loads and stores; any thread may
/// read.
#[derive(Debug)]
pub struct PeerCounters(Box<[OnceLock<CounterPage>; PAGES]>);

impl Default for PeerCounters {
    fn default() -> Self {
        Self(Box::new([const { OnceLock::new() }; PAGES]))
    }
}

impl PeerCounters {
    /// Counts packets to a peer. Only the owning worker may call it.
    #[inline]
    pub(super) fn sent(&self, peer: PeerId, packets: u64, bytes: u64) {
        if let Some(cell) = self.cell(peer) {
            add(&cell.out_packets, packets);
            add(&cell.out_bytes, bytes);
        }
    }

    /// Counts a packet from a peer. Only the owning worker may call it.
    #[inline]
    pub(super) fn received(&self, peer: PeerId, bytes: u64) {
        if let Some(cell) = self.cell(peer) {
            add(&cell.in_packets, 1);
            add(&cell.in_bytes, bytes);
        }
    }

    #[inline]
    fn cell(&self, peer: PeerId) -> Option<&Cell> {
        let number = peer.0 as usize;
        let page = self.0.get(number / PAGE_LEN)?;
        let page = page.get_or_init(|| Box::new(std::array::from_fn(|_| Cell::default())));
        Some(&page[number % PAGE_LEN])
    }

    pub(super) fn get(&self, peer: PeerId) -> PeerTotals {
        let number = peer.0 as usize;
        let page = self.0.get(number / PAGE_LEN).and_then(OnceLock::get);
        let Some(cell) = page.map(|page| &page[number % PAGE_LEN]) else {
            return PeerTotals::default();
        };
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        PeerTotals {
            out_packets: read(&cell.out_packets),
            out_bytes: read(&cell.out_bytes),
            in_packets: read(&cell.in_packets),
            in_bytes: read(&cell.in_bytes),
        }
    }
}

#[inline]
fn add(value: &AtomicU64, amount: u64) {
    let sum = value.load(Ordering::Relaxed).wrapping_add(amount);
    value.store(sum, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_is_counted_apart_and_numbers_out_of_range_not_at_all() {
        let counters = PeerCounters::default();
        for number in [0, 255, 256, 65_535] {
            counters.sent(PeerId(number), 2, 100 + u64::from(number));
            counters.received(PeerId(number), 7);
            counters.received(PeerId(number), 8);
        }
        counters.sent(PeerId(65_536), 1, 1);
        counters.received(PeerId(u32::MAX), 1);
        for number in [0, 255, 256, 65_535] {
            let expected = PeerTotals {
                out_packets: 2,
                out_bytes: 100 + u64::from(number),
                in_packets: 2,
                in_bytes: 15,
            };
            assert_eq!(counters.get(PeerId(number)), expected, "{number}");
        }
        for number in [1, 257, 40_000, 65_536, u32::MAX] {
            let found = counters.get(PeerId(number));
            assert_eq!(found, PeerTotals::default(), "{number}");
        }
    }

    #[test]
    fn totals_are_added_and_subtracted() {
        let part = |number| PeerTotals {
            out_packets: number,
            out_bytes: 10 * number,
            in_packets: 0,
            in_bytes: number,
        };
        let sum: PeerTotals = [part(1), part(4)].into_iter().sum();
        assert_eq!(sum, part(5));
        assert_eq!(sum - part(2), part(3));
        assert_eq!(part(1) - part(2), PeerTotals::default());
    }
}
