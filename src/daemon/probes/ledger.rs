//! Who is asked when and with what, what came of it, and who is answered. Pure: times and
//! random numbers are handed in.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::asked::{Asked, Judged};
use super::loss::Losses;
use super::path::{Path, SMALL};
use super::target::{Health, Means, SILENT_AFTER, Target};
use crate::daemon::probes::round_trips::RoundTrips;
use crate::dataplane::inbound::probes::Heard;
use crate::wire::probe::{Kind, Message};

/// No peer is asked more often.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// From the news of a peer to its first probe: it hears of us at about the same time.
const SOON: Duration = Duration::from_millis(200);
/// Every so many probes one has the length of the path.
const LENGTH_EVERY: u32 = 4;
/// Of a silent peer that promises answers, so many probes until one by ICMP: its answers may
/// come from an address that is not its lease's.
const CHECK_EVERY: u32 = 4;
/// Of one that answers ICMP alone, so many probes until one inside of the tunnel.
const RETRY_EVERY: u32 = 20;

/// A probe to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// To whom.
    pub target: Target,
    /// How it goes.
    pub means: Means,
    /// What it says, where it goes by [`Means::InBand`]; else its length and nonce are used.
    pub message: Message,
}

/// What to do with a message that was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answered a question of ours.
    Taken,
    /// It is to be answered so.
    Answer(Target, Message),
    /// It came before.
    Replay,
    /// More than a peer may ask.
    Excess,
    /// It fits nothing.
    Stray,
}

/// A probe on its way.
#[derive(Debug, Clone, Copy)]
struct Pending {
    message: Message,
    means: Means,
    /// It only tries whether the other means works: unanswered, it says nothing.
    is_try: bool,
    sent: Instant,
}

#[derive(Debug)]
struct Peer {
    target: Target,
    /// It promises answers, but only those to ICMP reach us.
    only_echo: bool,
    losses: Losses,
    path: Path,
    rtt: Option<Duration>,
    unanswered: u32,
    heard: Option<Instant>,
    turns: u32,
    /// Numbers of the latest probe of each kind.
    number: u32,
    size_number: u32,
    small: Option<Pending>,
    large: Option<Pending>,
    /// Length of a large one that was lost: if the small one after it is lost too, that says
    /// nothing about the length.
    suspect: Option<u16>,
    sent: Option<Instant>,
    due: Instant,
    asked: Asked,
}

impl Peer {
    fn new(target: Target, mtu: u16, due: Instant) -> Self {
        Self {
            target,
            only_echo: false,
            losses: Losses::default(),
            path: Path::new(mtu),
            rtt: None,
            unanswered: 0,
            heard: None,
            turns: 0,
            number: 0,
            size_number: 0,
            small: None,
            large: None,
            suspect: None,
            sent: None,
            due,
            asked: Asked::default(),
        }
    }

    /// How it is asked, but for tries.
    const fn means(&self) -> Means {
        if self.only_echo {
            Means::Echo
        } else {
            self.target.means()
        }
    }

    /// What is still on its way by now is lost.
    fn give_up(&mut self) {
        if self.small.take().is_some_and(|small| !small.is_try) {
            self.unanswered += 1;
            self.suspect = None;
        }
        if let Some(large) = self.large.take() {
            self.suspect = Some(large.message.length);
        }
    }

    /// The next turn: by which means, whether that is a try, and whether the length of the
    /// path is asked.
    fn turn(&mut self) -> (Means, bool, bool) {
        self.give_up();
        self.turns = self.turns.wrapping_add(1);
        let every = |count| self.turns.is_multiple_of(count);
        let promises = self.target.means() == Means::InBand;
        if self.only_echo && every(RETRY_EVERY) {
            return (Means::InBand, true, false);
        }
        if promises && self.unanswered >= SILENT_AFTER && every(CHECK_EVERY) {
            return (Means::Echo, true, false);
        }
        let answers = self.rtt.is_some() && self.unanswered == 0 && self.suspect.is_none();
        let is_large = answers && (self.path.is_searching() || every(LENGTH_EVERY));
        (self.means(), false, is_large)
    }

    /// Whether something is found out right now.
    const fn is_busy(&self) -> bool {
        self.unanswered == 0 && (self.suspect.is_some() || self.path.is_searching())
    }

    /// A reply came; its round trip where it was waited for.
    fn answered(&mut self, means: Means, nonce: u64, length: u16, rtt: Rtt) -> Option<Duration> {
        let fits = |pending: &mut Pending| {
            let asked = &pending.message;
            pending.means == means && asked.nonce == nonce && asked.length == length
        };
        if let Some(probe) = self.small.take_if(fits) {
            // What was lost before it ever answered was sent to nobody yet.
            if self.rtt.is_none() {
                self.losses = Losses::default();
                self.losses.sent(probe.message.number, probe.sent);
            }
            let trip = rtt.since(probe.sent);
            self.rtt = Some(trip);
            self.unanswered = 0;
            if probe.is_try {
                self.only_echo = means == Means::Echo;
                self.losses = Losses::default();
            } else {
                self.losses.answered(probe.message.number);
            }
            if let Some(length) = self.suspect.take() {
                self.path.missed(length);
            }
            return Some(trip);
        }
        let large = self.large.take_if(fits)?;
        self.path.passed(length);
        Some(rtt.since(large.sent))
    }
}

/// When a reply came, and how long its sender had kept the request.
#[derive(Debug, Clone, Copy)]
struct Rtt {
    at: Instant,
    held: Duration,
}

impl Rtt {
    fn since(self, sent: Instant) -> Duration {
        let whole = self.at.saturating_duration_since(sent);
        // Who claims to have kept it for longer than all of it took is not believed.
        whole.checked_sub(self.held).unwrap_or(whole)
    }
}

/// The books of all peers.
#[derive(Debug)]
pub struct Ledger {
    peers: BTreeMap<Ipv4Addr, Peer>,
    by_address: HashMap<Ipv4Addr, Ipv4Addr>,
    /// Peers that were never asked, and all others, by when they are due.
    fresh: BTreeSet<(Instant, Ipv4Addr)>,
    known: BTreeSet<(Instant, Ipv4Addr)>,
    /// When peers that went were asked last, as long as that matters.
    gone: HashMap<Ipv4Addr, Instant>,
    session: u32,
    mtu: u16,
    interval: Duration,
    trips: RoundTrips,
}

impl Ledger {
    /// Empty books, for a device that takes packets of `mtu` bytes; each peer is to be asked
    /// once in `interval`. `session` tells our requests from those of an earlier life.
    #[must_use]
    pub fn new(session: u32, mtu: u16, interval: Duration) -> Self {
        Self {
            peers: BTreeMap::new(),
            by_address: HashMap::new(),
            fresh: BTreeSet::new(),
            known: BTreeSet::new(),
            gone: HashMap::new(),
            session: session.max(1),
            mtu,
            interval: interval.max(LEAST_PAUSE),
            trips: RoundTrips::default(),
        }
    }

    /// From now on these peers. Whether somebody is due earlier than before.
    pub fn set_peers(&mut self, targets: &[Target], now: Instant) -> bool {
        let wanted: HashSet<Ipv4Addr> = targets.iter().map(|it| it.subnet.network()).collect();
        self.gone.retain(|_, sent| now < *sent + LEAST_PAUSE);
        let gone = self.peers.keys().filter(|it| !wanted.contains(it));
        for network in gone.copied().collect::<Vec<_>>() {
            if let Some(sent) = self.remove(network).and_then(|peer| peer.sent) {
                self.gone.insert(network, sent);
            }
        }
        let mut news = false;
        for target in targets {
            let network = target.subnet.network();
            let before = match self.peers.get(&network) {
                Some(peer) if peer.target == *target => continue,
                Some(_) => self.remove(network),
                None => None,
            };
            let sent = before.as_ref().and_then(|peer| peer.sent);
            let sent = sent.or_else(|| self.gone.get(&network).copied());
            let due = sent.map_or(now + SOON, |sent| (sent + LEAST_PAUSE).max(now + SOON));
            let mut peer = Peer::new(*target, self.mtu, due);
            peer.sent = sent;
            if let Some(before) = before {
                // The same host, asked in another way or at another place.
                (peer.rtt, peer.heard) = (before.rtt, before.heard);
                peer.unanswered = before.unanswered;
                (peer.number, peer.size_number) = (before.number, before.size_number);
            }
            self.by_address.insert(target.public_ip, network);
            self.fresh.insert((due, network));
            self.peers.insert(network, peer);
            news = true;
        }
        news
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
    pub fn set_mtu(&mut self, mtu: u16) {
        if mtu == self.mtu {
            return;
        }
        self.mtu = mtu;
        for peer in self.peers.values_mut() {
            peer.path = Path::new(mtu);
            (peer.large, peer.suspect) = (None, None);
        }
    }

    /// When the next peer is due.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let heads = [self.fresh.first(), self.known.first()];
        heads.into_iter().flatten().map(|(due, _)| *due).min()
    }

    /// Whom to ask at `now`: peers that were never asked first, then who waits longest. Who
    /// `may` not be asked inside of the tunnel has its next turn later.
    pub fn next(
        &mut self,
        nonce: u64,
        now: Instant,
        may: impl FnOnce(&Target) -> bool,
    ) -> Option<Ask> {
        let due = |queue: &BTreeSet<(Instant, Ipv4Addr)>| {
            queue.first().copied().filter(|(due, _)| *due <= now)
        };
        let key = due(&self.fresh).or_else(|| due(&self.known))?;
        self.fresh.remove(&key);
        self.known.remove(&key);
        let network = key.1;
        let peer = self.peers.get_mut(&network)?;
        let turn = peer.turn();
        let may = turn.0 == Means::Echo || may(&peer.target);
        let ask = may.then(|| Self::ask(self.session, peer, turn, nonce, now));
        let pause = match peer.is_busy() {
            true => LEAST_PAUSE,
            false => self.interval,
        };
        peer.due = now + pause;
        self.known.insert((peer.due, network));
        ask
    }

    fn ask(
        session: u32,
        peer: &mut Peer,
        (means, is_try, is_large): (Means, bool, bool),
        nonce: u64,
        now: Instant,
    ) -> Ask {
        peer.sent = Some(now);
        let (kind, length, number) = match is_large {
            true => (Kind::SizeRequest, peer.path.length(), &mut peer.size_number),
            false => (Kind::Request, SMALL, &mut peer.number),
        };
        *number = number.wrapping_add(1);
        let message = Message {
            kind,
            length,
            nonce,
            session,
            number: *number,
            seen: peer.asked.seen(),
            held: 0,
        };
        let pending = Some(Pending {
            message,
            means,
            is_try,
            sent: now,
        });
        match is_large {
            true => peer.large = pending,
            false => peer.small = pending,
        }
        if !is_large && !is_try {
            peer.losses.sent(message.number, now);
        }
        Ask {
            target: peer.target,
            means,
            message,
        }
    }

    /// The kernel refused a probe because of its length.
    pub fn refused(&mut self, ask: &Ask) {
        let network = ask.target.subnet.network();
        let Some(peer) = self.peers.get_mut(&network) else {
            return;
        };
        let same = |pending: &mut Pending| pending.message.nonce == ask.message.nonce;
        if peer.large.take_if(same).is_some() {
            peer.path.refused(ask.message.length);
        }
    }

    /// An echo reply with this nonce came, of an IPv4 packet of `length` bytes.
    pub fn echoed(&mut self, from: Ipv4Addr, nonce: u64, length: u16, at: Instant) {
        if let Some(peer) = self.peers.get_mut(&from) {
            let rtt = Rtt {
                at,
                held: Duration::ZERO,
            };
            let trip = peer.answered(Means::Echo, nonce, length, rtt);
            trip.inspect(|trip| self.trips.count(*trip));
        }
    }

    /// A message came through the tunnel.
    pub fn heard(&mut self, heard: &Heard, now: Instant) -> Outcome {
        let network = self.by_address.get(&heard.source);
        let Some(peer) = network.and_then(|network| self.peers.get_mut(network)) else {
            return Outcome::Stray;
        };
        if !peer.target.answers || peer.target.mac != heard.mac {
            return Outcome::Stray;
        }
        let message = &heard.message;
        let Some(reply) = message.kind.reply() else {
            let expected = match message.kind {
                Kind::Reply => peer.small.as_ref(),
                _ => peer.large.as_ref(),
            };
            let asked = expected.is_some_and(|probe| {
                (probe.message.session, probe.message.number) == (message.session, message.number)
            });
            let rtt = Rtt {
                at: heard.at,
                held: Duration::from_micros(message.held.into()),
            };
            let (nonce, length) = (message.nonce, message.length);
            let trip = asked.then(|| peer.answered(Means::InBand, nonce, length, rtt));
            let Some(trip) = trip.flatten() else {
                return Outcome::Stray;
            };
            self.trips.count(trip);
            peer.note(message, self.session, heard.at);
            return Outcome::Taken;
        };
        match peer.asked.take(message, heard.at) {
            Judged::Replay => return Outcome::Replay,
            Judged::Excess => return Outcome::Excess,
            Judged::Answer => peer.note(message, self.session, heard.at),
        }
        // What it sends comes from where its lease says.
        peer.only_echo = false;
        let held = now.saturating_duration_since(heard.at).as_micros();
        let answer = Message {
            kind: reply,
            seen: peer.asked.seen(),
            held: u32::try_from(held).unwrap_or(u32::MAX),
            ..*message
        };
        Outcome::Answer(peer.target, answer)
    }

    /// Round trips of all answered probes.
    #[must_use]
    pub const fn round_trips(&self) -> &RoundTrips {
        &self.trips
    }

    /// What is known of a peer.
    #[must_use]
    pub fn health(&self, subnet: Ipv4Net) -> Option<Health> {
        let peer = self.peers.get(&subnet.network())?;
        Some(Health {
            means: peer.means(),
            rtt: peer.rtt,
            loss: peer.losses.count(),
            path_mtu: peer.path.found(),
            heard: peer.heard,
            unanswered: peer.unanswered,
        })
    }
}

impl Peer {
    /// It is there, and says what it has got from us.
    fn note(&mut self, message: &Message, session: u32, at: Instant) {
        self.heard = Some(at);
        if message.seen.session == session {
            self.losses.reported(message.seen, at);
        }
    }
}

#[cfg(test)]
mod tests;
