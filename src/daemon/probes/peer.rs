//! One peer: its next probe, what became of earlier ones, and the replies to its requests. Pure.

use std::time::{Duration, Instant};

use super::loss::Losses;
use super::path::{Path, SMALL};
use super::replay_window::{Check, ReplayWindow};
use super::target::{Health, Method, SILENT_AFTER, Target};
use crate::dataplane::inbound::probes::ReceivedProbe;
use crate::wire::probe::{Kind, Message};

/// One in this many probes has the length of the path.
const LENGTH_EVERY: u32 = 4;
/// For a silent peer that promises replies, one in this many probes is ICMP: its replies may
/// come from an address that is not its lease's.
const ECHO_EVERY: u32 = 4;
/// For such a peer that answers ICMP alone, one in this many probes is in-band.
const RETRY_EVERY: u32 = 20;

/// A probe to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) target: Target,
    pub(super) method: Method,
    /// The message of an in-band probe; an ICMP echo takes length and nonce from it.
    pub(super) message: Message,
}

/// What to do about a received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disposition {
    /// Nothing: it is the reply to a probe of ours.
    Accepted,
    /// Send this reply.
    Reply(Target, Message),
    /// Ignore it: it came before.
    Replay,
    /// Ignore it: the peer sends too many requests.
    Excess,
    /// Ignore it: no peer sends this, or it replies to nothing that was sent.
    Stray,
}

/// A probe that waits for its reply.
#[derive(Debug, Clone, Copy)]
struct Pending {
    message: Message,
    method: Method,
    /// It only tries whether the other method works: without a reply it says nothing.
    is_trial: bool,
    sent: Instant,
}

/// What a peer's next probe is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) method: Method,
    is_trial: bool,
    /// Whether it has the length of the path.
    is_large: bool,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) target: Target,
    /// It promises replies, but only those to ICMP reach us.
    only_echo: bool,
    losses: Losses,
    path: Path,
    rtt: Option<Duration>,
    unanswered: u32,
    heard: Option<Instant>,
    turns: u32,
    /// Numbers of the latest small and large probe.
    number: u32,
    size_number: u32,
    small: Option<Pending>,
    large: Option<Pending>,
    /// Length of a large probe that was lost: if the next small one is lost too, that says
    /// nothing about the length.
    suspect: Option<u16>,
    pub(super) sent: Option<Instant>,
    pub(super) due: Instant,
    requests: ReplayWindow,
}

impl Peer {
    pub(super) fn new(target: Target, mtu: u16, due: Instant) -> Self {
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
            requests: ReplayWindow::default(),
        }
    }

    /// Takes over what is known of the same host, which is now probed by another method or at
    /// another address.
    pub(super) fn inherit(&mut self, before: &Self) {
        (self.rtt, self.heard) = (before.rtt, before.heard);
        self.unanswered = before.unanswered;
        (self.number, self.size_number) = (before.number, before.size_number);
    }

    /// The device has another MTU: what is known of the path was for the old one.
    pub(super) fn set_mtu(&mut self, mtu: u16) {
        self.path = Path::new(mtu);
        (self.large, self.suspect) = (None, None);
    }

    pub(super) fn health(&self) -> Health {
        Health {
            method: self.method(),
            rtt: self.rtt,
            loss: self.losses.count(),
            path_mtu: self.path.found(),
            heard: self.heard,
            unanswered: self.unanswered,
        }
    }

    /// How it is probed, apart from trials.
    const fn method(&self) -> Method {
        if self.only_echo {
            Method::Echo
        } else {
            self.target.method()
        }
    }

    /// Counts probes without a reply as lost.
    fn expire_pending(&mut self) {
        if self.small.take().is_some_and(|small| !small.is_trial) {
            self.unanswered += 1;
            self.suspect = None;
        }
        if let Some(large) = self.large.take() {
            self.suspect = Some(large.message.length);
        }
    }

    pub(super) fn next_turn(&mut self) -> Turn {
        self.expire_pending();
        self.turns = self.turns.wrapping_add(1);
        let every = |count| self.turns.is_multiple_of(count);
        let trial = |method| Turn {
            method,
            is_trial: true,
            is_large: false,
        };
        if self.only_echo && every(RETRY_EVERY) {
            return trial(Method::InBand);
        }
        let promises = self.target.method() == Method::InBand;
        if promises && self.unanswered >= SILENT_AFTER && every(ECHO_EVERY) {
            return trial(Method::Echo);
        }
        let answers = self.rtt.is_some() && self.unanswered == 0 && self.suspect.is_none();
        Turn {
            method: self.method(),
            is_trial: false,
            is_large: answers && (self.path.is_searching() || every(LENGTH_EVERY)),
        }
    }

    /// Whether the length of the path is being searched.
    pub(super) const fn is_searching(&self) -> bool {
        self.unanswered == 0 && (self.suspect.is_some() || self.path.is_searching())
    }

    /// Makes the probe, and waits for its reply from now on.
    pub(super) fn probe(&mut self, turn: Turn, session: u32, nonce: u64, now: Instant) -> Probe {
        self.sent = Some(now);
        let (kind, length, number) = match turn.is_large {
            true => (Kind::SizeRequest, self.path.length(), &mut self.size_number),
            false => (Kind::Request, SMALL, &mut self.number),
        };
        *number = number.wrapping_add(1);
        let message = Message {
            kind,
            length,
            nonce,
            session,
            number: *number,
            seen: self.requests.seen(),
            held: 0,
        };
        let pending = Some(Pending {
            message,
            method: turn.method,
            is_trial: turn.is_trial,
            sent: now,
        });
        match turn.is_large {
            true => self.large = pending,
            false => self.small = pending,
        }
        if !turn.is_large && !turn.is_trial {
            self.losses.sent(message.number, now);
        }
        Probe {
            target: self.target,
            method: turn.method,
            message,
        }
    }

    /// The kernel refused to send this message because of its length.
    pub(super) fn too_long(&mut self, message: &Message) {
        let same = |pending: &mut Pending| pending.message.nonce == message.nonce;
        if self.large.take_if(same).is_some() {
            self.path.refused(message.length);
        }
    }

    pub(super) fn receive_request(
        &mut self,
        heard: &ReceivedProbe,
        reply: Kind,
        session: u32,
        now: Instant,
    ) -> Disposition {
        match self.requests.check(&heard.message, heard.at) {
            Check::Replay => return Disposition::Replay,
            Check::Excess => return Disposition::Excess,
            Check::New => self.note(&heard.message, session, heard.at),
        }
        // Its messages come from the address of its lease.
        self.only_echo = false;
        let held = now.saturating_duration_since(heard.at).as_micros();
        let reply = Message {
            kind: reply,
            seen: self.requests.seen(),
            held: u32::try_from(held).unwrap_or(u32::MAX),
            ..heard.message
        };
        Disposition::Reply(self.target, reply)
    }

    pub(super) fn receive_reply(
        &mut self,
        heard: &ReceivedProbe,
        session: u32,
    ) -> Option<Duration> {
        let message = &heard.message;
        let expected = match message.kind {
            Kind::Reply => self.small.as_ref(),
            _ => self.large.as_ref(),
        }?;
        let request = (expected.message.session, expected.message.number);
        if request != (message.session, message.number) {
            return None;
        }
        let arrival = Arrival {
            at: heard.at,
            held: Duration::from_micros(message.held.into()),
        };
        let trip = self.answered(Method::InBand, message.nonce, message.length, arrival)?;
        self.note(message, session, heard.at);
        Some(trip)
    }

    pub(super) fn receive_echo(
        &mut self,
        nonce: u64,
        length: u16,
        at: Instant,
    ) -> Option<Duration> {
        let arrival = Arrival {
            at,
            held: Duration::ZERO,
        };
        self.answered(Method::Echo, nonce, length, arrival)
    }

    /// Notes that the peer is up, and which of our probes it has received.
    fn note(&mut self, message: &Message, session: u32, at: Instant) {
        self.heard = Some(at);
        if message.seen.session == session {
            self.losses.reported(message.seen, at);
        }
    }

    /// Takes in a reply. Returns its round trip, if there is a probe that it replies to.
    fn answered(
        &mut self,
        method: Method,
        nonce: u64,
        length: u16,
        arrival: Arrival,
    ) -> Option<Duration> {
        let fits = |pending: &mut Pending| {
            let probe = &pending.message;
            pending.method == method && probe.nonce == nonce && probe.length == length
        };
        if let Some(probe) = self.small.take_if(fits) {
            // Before its first reply the peer may not have been up: that is no loss.
            if self.rtt.is_none() {
                self.losses = Losses::default();
                self.losses.sent(probe.message.number, probe.sent);
            }
            let trip = arrival.rtt(probe.sent);
            self.rtt = Some(trip);
            self.unanswered = 0;
            if probe.is_trial {
                self.only_echo = method == Method::Echo;
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
        Some(arrival.rtt(large.sent))
    }
}

/// When a reply came, and how long the peer had held the request.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    at: Instant,
    held: Duration,
}

impl Arrival {
    fn rtt(self, sent: Instant) -> Duration {
        let whole = self.at.saturating_duration_since(sent);
        // A peer cannot have held it for longer than the whole round trip.
        whole.checked_sub(self.held).unwrap_or(whole)
    }
}
