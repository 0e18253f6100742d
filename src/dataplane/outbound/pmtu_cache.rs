//! Peers whose path MTU is below the overlay's, and a rate limit for the ICMP messages about it.
//!
//! Outer packets carry no DF, so too long ones still arrive, in fragments. That is slow: the
//! sender of a packet with DF inside is told the MTU that fits (RFC 1191).

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long an entry is valid; then the full MTU is tried again.
const LIFETIME: Duration = Duration::from_secs(60);
/// Packets to peers beyond this number are left to fragmentation.
const MAX_ENTRIES: usize = 256;
/// Messages that may be sent at once, and the interval after which one more may follow.
const ICMP_BURST: u32 = 20;
const ICMP_INTERVAL: Duration = Duration::from_millis(50);

/// Path MTUs by the peer's public address. Empty on nearly every host.
#[derive(Debug)]
pub(super) struct PmtuCache {
    entries: Vec<Entry>,
    tokens: u32,
    refilled: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    peer: Ipv4Addr,
    inner_mtu: u16,
    expires: Instant,
}

impl PmtuCache {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            entries: Vec::new(),
            tokens: ICMP_BURST,
            refilled: now,
        }
    }

    /// Remembers the longest inner packet that fits the path to a peer. Returns whether that
    /// is new.
    pub(super) fn insert(&mut self, peer: Ipv4Addr, inner_mtu: u16, now: Instant) -> bool {
        let entry = Entry {
            peer,
            inner_mtu,
            expires: now + LIFETIME,
        };
        if let Some(known) = self.entries.iter_mut().find(|entry| entry.peer == peer) {
            let is_new = known.inner_mtu != inner_mtu;
            *known = entry;
            return is_new;
        }
        let has_room = self.entries.len() < MAX_ENTRIES;
        if has_room {
            self.entries.push(entry);
        }
        has_room
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.entries.retain(|entry| entry.expires > now);
    }

    #[inline]
    pub(super) const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The longest inner packet in bytes that fits the path to a peer, if that is known to be
    /// less than the device's MTU.
    pub(super) fn inner_mtu(&self, peer: Ipv4Addr) -> Option<u16> {
        let entry = self.entries.iter().find(|entry| entry.peer == peer)?;
        Some(entry.inner_mtu)
    }

    /// Whether another ICMP message may be sent now.
    pub(super) fn may_send_icmp(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.refilled);
        let intervals = elapsed.as_millis() / ICMP_INTERVAL.as_millis();
        if intervals > 0 {
            self.tokens = u32::try_from(intervals)
                .unwrap_or(ICMP_BURST)
                .saturating_add(self.tokens)
                .min(ICMP_BURST);
            self.refilled = now;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

    #[test]
    fn an_entry_is_new_once_and_expires_after_a_minute() {
        let start = Instant::now();
        let mut cache = PmtuCache::new(start);
        assert!(cache.is_empty());
        assert!(cache.insert(PEER, 1350, start));
        assert!(!cache.insert(PEER, 1350, start));
        assert!(cache.insert(PEER, 1300, start));
        assert_eq!(cache.inner_mtu(PEER), Some(1300));
        assert_eq!(cache.inner_mtu(Ipv4Addr::LOCALHOST), None);
        cache.expire(start + LIFETIME - Duration::from_secs(1));
        assert!(!cache.is_empty());
        cache.expire(start + LIFETIME);
        assert!(cache.is_empty());
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        let now = Instant::now();
        let mut cache = PmtuCache::new(now);
        for number in 0..1000u32 {
            cache.insert(Ipv4Addr::from_bits(number), 1000, now);
        }
        assert_eq!(cache.entries.len(), MAX_ENTRIES);
    }

    #[test]
    fn a_burst_then_one_message_per_interval() {
        let start = Instant::now();
        let mut cache = PmtuCache::new(start);
        let mut sent = |at| (0..100).filter(|_| cache.may_send_icmp(at)).count();
        assert_eq!(sent(start), ICMP_BURST as usize);
        assert_eq!(sent(start + ICMP_INTERVAL / 2), 0);
        assert_eq!(sent(start + ICMP_INTERVAL), 1);
        assert_eq!(sent(start + Duration::from_secs(3600)), ICMP_BURST as usize);
    }
}
