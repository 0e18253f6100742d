//! Which peer is probed next, and which peer a message is from. Pure: times and random numbers are
//! passed in.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::peer::{Disposition, Peer, Probe};
use super::round_trips::RoundTrips;
use super::target::{Health, Method, Target};
use crate::dataplane::inbound::probes::ReceivedProbe;

/// Least time between two probes of one peer.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// From the discovery of a peer to its first probe: it discovers us at about the same time.
const FIRST_DELAY: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Schedule {
    peers: BTreeMap<Ipv4Addr, Peer>,
    by_address: HashMap<Ipv4Addr, Ipv4Addr>,
    /// Peers that were never probed, and all others, by when they are due.
    fresh: BTreeSet<(Instant, Ipv4Addr)>,
    known: BTreeSet<(Instant, Ipv4Addr)>,
    /// When removed peers were last probed, as long as that matters.
    gone: HashMap<Ipv4Addr, Instant>,
    session: u32,
    mtu: u16,
    interval: Duration,
    trips: RoundTrips,
}

impl Schedule {
    /// No peers yet. `mtu` is the device's; each peer is probed once in `interval`. `session`
    /// distinguishes our requests from those before a restart.
    pub(super) fn new(session: u32, mtu: u16, interval: Duration) -> Self {
        Self {
            peers: BTreeMap::new(),
            by_address: HashMap::new(),
            fresh: BTreeSet::new(),
            known: BTreeSet::new(),
            gone: HashMap::new(),
            session: session.max(1),
            mtu,
            interval: interval.max(MIN_INTERVAL),
            trips: RoundTrips::default(),
        }
    }

    /// Replaces the peers. Returns whether one of them is due earlier than before.
    pub(super) fn set_peers(&mut self, targets: &[Target], now: Instant) -> bool {
        let wanted: HashSet<Ipv4Addr> = targets.iter().map(|it| it.subnet.network()).collect();
        self.gone.retain(|_, sent| now < *sent + MIN_INTERVAL);
        let gone = self.peers.keys().filter(|it| !wanted.contains(it));
        for network in gone.copied().collect::<Vec<_>>() {
            if let Some(sent) = self.remove(network).and_then(|peer| peer.sent) {
                self.gone.insert(network, sent);
            }
        }
        let mut changed = false;
        for target in targets {
            let network = target.subnet.network();
            let before = match self.peers.get(&network) {
                Some(peer) if peer.target == *target => continue,
                Some(_) => self.remove(network),
                None => None,
            };
            let sent = before.as_ref().and_then(|peer| peer.sent);
            let sent = sent.or_else(|| self.gone.get(&network).copied());
            let due = sent.map_or(now + FIRST_DELAY, |sent| {
                (sent + MIN_INTERVAL).max(now + FIRST_DELAY)
            });
            let mut peer = Peer::new(*target, self.mtu, due);
            peer.sent = sent;
            if let Some(before) = before {
                peer.inherit(&before);
            }
            self.by_address.insert(target.public_ip, network);
            self.fresh.insert((due, network));
            self.peers.insert(network, peer);
            changed = true;
        }
        changed
    }

    fn remove(&mut self, network: Ipv4Addr) -> Option<Peer> {
        let peer = self.peers.remove(&network)?;
        let key = (peer.due, network);
        if !self.fresh.remove(&key) {
            self.known.remove(&key);
        }
        if self.by_address.get(&peer.target.public_ip) == Some(&network) {
            self.by_address.remove(&peer.target.public_ip);
        }
        Some(peer)
    }

    /// The device has another MTU: what is known of the paths was for the old one.
    pub(super) fn set_mtu(&mut self, mtu: u16) {
        if mtu == self.mtu {
            return;
        }
        self.mtu = mtu;
        for peer in self.peers.values_mut() {
            peer.set_mtu(mtu);
        }
    }

    /// When the next peer is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let heads = [self.fresh.first(), self.known.first()];
        heads.into_iter().flatten().map(|(due, _)| *due).min()
    }

    /// The probe to send at `now`: to peers that were never probed first, then to the one that
    /// has waited longest. If `may` says that the peer must not be probed in-band now, its turn
    /// is skipped.
    pub(super) fn next(
        &mut self,
        nonce: u64,
        now: Instant,
        may: impl FnOnce(&Target) -> bool,
    ) -> Option<Probe> {
        let due = |queue: &BTreeSet<(Instant, Ipv4Addr)>| {
            queue.first().copied().filter(|(due, _)| *due <= now)
        };
        let key = due(&self.fresh).or_else(|| due(&self.known))?;
        self.fresh.remove(&key);
        self.known.remove(&key);
        let network = key.1;
        let peer = self.peers.get_mut(&network)?;
        let turn = peer.next_turn();
        let may = turn.method == Method::Echo || may(&peer.target);
        let probe = may.then(|| peer.probe(turn, self.session, nonce, now));
        let pause = match peer.is_searching() {
            true => MIN_INTERVAL,
            false => self.interval,
        };
        peer.due = now + pause;
        self.known.insert((peer.due, network));
        probe
    }

    /// The kernel refused to send a probe because of its length.
    pub(super) fn too_long(&mut self, probe: &Probe) {
        if let Some(peer) = self.peers.get_mut(&probe.target.subnet.network()) {
            peer.too_long(&probe.message);
        }
    }

    /// Takes in an echo reply with this nonce, of an IPv4 packet of `length` bytes.
    pub(super) fn receive_echo(&mut self, from: Ipv4Addr, nonce: u64, length: u16, at: Instant) {
        if let Some(peer) = self.peers.get_mut(&from) {
            let trip = peer.receive_echo(nonce, length, at);
            trip.inspect(|trip| self.trips.count(*trip));
        }
    }

    /// Takes in a message that came through the tunnel.
    pub(super) fn receive(&mut self, heard: &ReceivedProbe, now: Instant) -> Disposition {
        let network = self.by_address.get(&heard.source);
        let Some(peer) = network.and_then(|network| self.peers.get_mut(network)) else {
            return Disposition::Stray;
        };
        if !peer.target.replies || peer.target.mac != heard.mac {
            return Disposition::Stray;
        }
        match heard.message.kind.reply() {
            Some(reply) => peer.receive_request(heard, reply, self.session, now),
            None => match peer.receive_reply(heard, self.session) {
                Some(trip) => {
                    self.trips.count(trip);
                    Disposition::Accepted
                }
                None => Disposition::Stray,
            },
        }
    }

    /// Round trips of all answered probes.
    pub(super) const fn round_trips(&self) -> &RoundTrips {
        &self.trips
    }

    pub(super) fn health(&self, subnet: Ipv4Net) -> Option<Health> {
        let peer = self.peers.get(&subnet.network())?;
        Some(peer.health())
    }
}

#[cfg(test)]
mod tests;
