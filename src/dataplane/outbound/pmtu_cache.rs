//! Peers whose path takes less than the device's MTU promises, and how often to say so.
//!
//! The outer packets carry no DF, so whatever is too long still arrives, in fragments. That
//! is slow: whoever sent a packet with DF inside is told the size that fits (RFC 1191).

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long a path counts as narrow; then it is tried anew.
const LIFETIME: Duration = Duration::from_secs(60);
/// Paths remembered at most; more are left to fragmentation.
const MAX_PATHS: usize = 256;
/// Messages at once, and the pause after which there may be one more.
const BURST: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Narrow paths by the peer's public address. Empty on nearly every host.
#[derive(Debug)]
pub struct PmtuCache {
    paths: Vec<PmtuEntry>,
    messages: u32,
    refilled: Instant,
}

#[derive(Debug, Clone, Copy)]
struct PmtuEntry {
    peer: Ipv4Addr,
    inner_mtu: u16,
    until: Instant,
}

impl PmtuCache {
    /// None yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            paths: Vec::new(),
            messages: BURST,
            refilled: now,
        }
    }

    /// Remembers that inner packets of more than `inner_mtu` bytes do not fit on the way to
    /// this peer. Returns whether that is news.
    pub fn learn(&mut self, peer: Ipv4Addr, inner_mtu: u16, now: Instant) -> bool {
        let learned = PmtuEntry {
            peer,
            inner_mtu,
            until: now + LIFETIME,
        };
        if let Some(known) = self.paths.iter_mut().find(|path| path.peer == peer) {
            let news = known.inner_mtu != inner_mtu;
            *known = learned;
            return news;
        }
        let room = self.paths.len() < MAX_PATHS;
        if room {
            self.paths.push(learned);
        }
        room
    }

    /// Forgets paths whose time is over.
    pub fn expire(&mut self, now: Instant) {
        self.paths.retain(|path| path.until > now);
    }

    /// Whether every path takes what the device promises.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Longest inner packet in bytes that fits on the way to a peer, where that is known to
    /// be less than the device's MTU.
    #[must_use]
    pub fn inner_mtu(&self, peer: Ipv4Addr) -> Option<u16> {
        let path = self.paths.iter().find(|path| path.peer == peer)?;
        Some(path.inner_mtu)
    }

    /// Whether another message may be sent now.
    pub fn may_tell(&mut self, now: Instant) -> bool {
        let pauses = now.saturating_duration_since(self.refilled).as_millis() / PAUSE.as_millis();
        if pauses > 0 {
            self.messages = u32::try_from(pauses)
                .unwrap_or(BURST)
                .saturating_add(self.messages)
                .min(BURST);
            self.refilled = now;
        }
        match self.messages.checked_sub(1) {
            Some(left) => {
                self.messages = left;
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
    fn a_path_is_news_once_and_forgotten_after_a_minute() {
        let start = Instant::now();
        let mut paths = PmtuCache::new(start);
        assert!(paths.is_empty());
        assert!(paths.learn(PEER, 1350, start));
        assert!(!paths.learn(PEER, 1350, start));
        assert!(paths.learn(PEER, 1300, start));
        assert_eq!(paths.inner_mtu(PEER), Some(1300));
        assert_eq!(paths.inner_mtu(Ipv4Addr::LOCALHOST), None);
        paths.expire(start + LIFETIME - Duration::from_secs(1));
        assert!(!paths.is_empty());
        paths.expire(start + LIFETIME);
        assert!(paths.is_empty());
    }

    #[test]
    fn no_more_paths_than_there_is_room() {
        let now = Instant::now();
        let mut paths = PmtuCache::new(now);
        for number in 0..1000u32 {
            paths.learn(Ipv4Addr::from_bits(number), 1000, now);
        }
        assert_eq!(paths.paths.len(), MAX_PATHS);
    }

    #[test]
    fn a_burst_then_one_a_pause() {
        let start = Instant::now();
        let mut paths = PmtuCache::new(start);
        let mut told = |at| (0..100).filter(|_| paths.may_tell(at)).count();
        assert_eq!(told(start), BURST as usize);
        assert_eq!(told(start + PAUSE / 2), 0);
        assert_eq!(told(start + PAUSE), 1);
        assert_eq!(told(start + Duration::from_secs(3600)), BURST as usize);
    }
}
