//! Asks each peer, now and then, whether it is there: an ICMP echo from our overlay address
//! to the network address of its subnet, which every VTEP of flannel's and ours has on its
//! device. So the whole way is tried, both directions, with nothing that a kernel peer would
//! not expect; a nonce in the request tells a reply from a guess.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::round_trips::RoundTrips;
use crate::control::SizeCounts;
use crate::host::echo::{HEADERS, SMALL, raw};
use crate::wire::echo::{self, Received};

/// Every so many probes one fills the device's MTU.
const LARGE_EVERY: u32 = 4;
/// Probes that loss is counted over.
const WINDOW: u32 = 20;
/// So many unanswered in a row, and a peer is silent.
const SILENT_AFTER: u32 = 3;

/// What probes found out about a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health {
    /// Last round trip.
    pub rtt: Option<Duration>,
    /// Longest packet that was answered whole, in bytes.
    pub largest: Option<u16>,
    /// Probes sent.
    pub sent: u32,
    /// Unanswered since the last answer.
    pub unanswered: u32,
    /// Whether the latest can still be answered in time.
    on_the_way: bool,
    /// The latest probes, one bit each, 1 is lost.
    lost: u32,
}

impl Health {
    /// Unanswered probes among the latest, in percent; none before the first ended.
    #[must_use]
    pub fn loss_percent(&self) -> Option<u8> {
        let on_the_way = u32::from(self.on_the_way);
        let ended = self.sent.checked_sub(on_the_way)?.min(WINDOW);
        let lost = (self.lost >> on_the_way & ((1 << WINDOW) - 1)).count_ones();
        (ended > 0).then(|| u8::try_from(lost * 100 / ended).unwrap_or(100))
    }

    /// Whether it answered nothing for some time.
    #[must_use]
    pub const fn is_silent(&self) -> bool {
        self.unanswered >= SILENT_AFTER
    }

    fn answered(&mut self, rtt: Duration, length: u16) {
        self.rtt = Some(rtt);
        self.unanswered = 0;
        self.on_the_way = false;
        self.lost &= !1;
        self.largest = self.largest.max(Some(length));
    }
}

/// A probe on its way.
#[derive(Debug, Clone, Copy)]
struct Pending {
    sequence: u16,
    nonce: u64,
    length: u16,
    sent: Instant,
}

/// The books of all peers. Pure: what is sent and what came is handed in.
#[derive(Debug, Default)]
pub struct Ledger {
    peers: BTreeMap<Ipv4Addr, (Health, Option<Pending>)>,
    cursor: Option<Ipv4Addr>,
    sequence: u16,
    trips: RoundTrips,
}

impl Ledger {
    /// From now on these peers, by the network addresses of their subnets.
    pub fn set_peers(&mut self, peers: &[Ipv4Addr]) {
        self.peers.retain(|address, _| peers.contains(address));
        for address in peers {
            self.peers.entry(*address).or_default();
        }
    }

    /// Whom to ask next, in turn, with which packet, where the device takes packets of `mtu`
    /// bytes.
    pub fn next(
        &mut self,
        identifier: u16,
        nonce: u64,
        mtu: u16,
        now: Instant,
    ) -> Option<(Ipv4Addr, Vec<u8>)> {
        let after = self.cursor.and_then(|cursor| {
            let mut rest = self.peers.range(cursor..);
            rest.find(|(address, _)| **address != cursor)
        });
        let (address, _) = after.or_else(|| self.peers.iter().next())?;
        let address = *address;
        self.cursor = Some(address);
        self.sequence = self.sequence.wrapping_add(1);
        let (health, pending) = self.peers.get_mut(&address)?;
        if pending.is_some() {
            health.unanswered += 1;
        }
        // The one that begins now counts as lost until it is answered.
        health.lost = health.lost << 1 | 1;
        health.on_the_way = true;
        let large = health.sent % LARGE_EVERY == LARGE_EVERY - 1;
        health.sent = health.sent.wrapping_add(1);
        let payload = match large {
            true => usize::from(mtu).saturating_sub(HEADERS).max(SMALL),
            false => SMALL,
        };
        let mut body = nonce.to_be_bytes().to_vec();
        body.resize(payload, 0);
        *pending = Some(Pending {
            sequence: self.sequence,
            nonce,
            length: u16::try_from(payload + HEADERS).unwrap_or(u16::MAX),
            sent: now,
        });
        Some((address, echo::request(identifier, self.sequence, &body)))
    }

    /// A message came.
    pub fn take(&mut self, identifier: u16, packet: &[u8], now: Instant) {
        let Some(message) = Received::parse(packet) else {
            return;
        };
        let Some((sequence, body)) = message.reply(identifier) else {
            return;
        };
        let Some((health, pending)) = self.peers.get_mut(&Ipv4Addr::from(message.source)) else {
            return;
        };
        let Some(probe) = pending.filter(|probe| probe.sequence == sequence) else {
            return;
        };
        let whole = body.len() + HEADERS == usize::from(probe.length);
        if whole && body.starts_with(&probe.nonce.to_be_bytes()) {
            health.answered(now - probe.sent, probe.length);
            self.trips.count(now - probe.sent);
            *pending = None;
        }
    }

    /// What is known of a peer.
    #[must_use]
    pub fn health(&self, address: Ipv4Addr) -> Option<Health> {
        self.peers.get(&address).map(|(health, _)| *health)
    }
}

/// Running probes; they end when this is dropped.
#[derive(Debug)]
pub struct Probes {
    ledger: Arc<Mutex<Ledger>>,
    peers: watch::Sender<Vec<Ipv4Addr>>,
    mtu: watch::Sender<u16>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Probes {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Probes {
    /// Probes every peer once in `interval`, from `own`, our subnet's network address; zero
    /// never does.
    #[must_use]
    pub fn start(own: Ipv4Addr, mtu: u16, interval: Duration) -> Self {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let (peers, peers_seen) = watch::channel(Vec::new());
        let (mtu, mtu_seen) = watch::channel(mtu);
        let task = match (interval.is_zero(), open(own)) {
            (true, _) => None,
            (false, Ok(socket)) => {
                let prober = Prober {
                    socket,
                    identifier: rand::random(),
                    ledger: Arc::clone(&ledger),
                    peers: peers_seen,
                    mtu: mtu_seen,
                    interval,
                };
                Some(tokio::spawn(prober.run()))
            }
            (false, Err(error)) => {
                tracing::warn!(event = "no_probes", %error, "peers are not probed");
                None
            }
        };
        Self {
            ledger,
            peers,
            mtu,
            task,
        }
    }

    /// From now on these peers.
    pub fn set_peers(&self, subnets: impl IntoIterator<Item = Ipv4Net>) {
        let addresses: Vec<_> = subnets.into_iter().map(|subnet| subnet.network()).collect();
        lock(&self.ledger).set_peers(&addresses);
        self.peers.send_replace(addresses);
    }

    /// The device has another MTU.
    pub fn set_mtu(&self, mtu: u16) {
        self.mtu.send_replace(mtu);
    }

    /// Round trips of all answered probes; none where peers are not probed.
    #[must_use]
    pub fn round_trips(&self) -> Option<SizeCounts> {
        self.task.as_ref()?;
        Some(lock(&self.ledger).trips.told())
    }

    /// What is known of a peer.
    #[must_use]
    pub fn health(&self, subnet: Ipv4Net) -> Option<Health> {
        self.task.as_ref()?;
        lock(&self.ledger).health(subnet.network())
    }
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    // No panic can leave the books half written.
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A raw socket for ICMP in the clothes of tokio's UDP socket: both only send and receive
/// datagrams.
fn open(own: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = raw(own)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}

struct Prober {
    socket: UdpSocket,
    identifier: u16,
    ledger: Arc<Mutex<Ledger>>,
    peers: watch::Receiver<Vec<Ipv4Addr>>,
    mtu: watch::Receiver<u16>,
    interval: Duration,
}

impl Prober {
    async fn run(mut self) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let mut due = tokio::time::Instant::now() + Duration::from_millis(200);
        loop {
            tokio::select! {
                // A new peer has its first probe soon.
                Ok(()) = self.peers.changed() => {
                    let soon = tokio::time::Instant::now() + Duration::from_millis(200);
                    due = due.min(soon);
                }
                () = tokio::time::sleep_until(due) => {
                    self.send();
                    let peers = self.peers.borrow().len().max(1);
                    let pause = self.interval / u32::try_from(peers).unwrap_or(u32::MAX);
                    due = tokio::time::Instant::now() + pause.max(Duration::from_millis(1));
                }
                read = self.socket.recv(&mut buffer) => match read {
                    Ok(length) => {
                        let now = Instant::now();
                        lock(&self.ledger).take(self.identifier, &buffer[..length], now);
                    }
                    // Errors of earlier probes (no route, a firewall) come back here.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                },
            }
        }
    }

    fn send(&self) {
        let mtu = *self.mtu.borrow();
        let next = lock(&self.ledger).next(self.identifier, rand::random(), mtu, Instant::now());
        if let Some((address, packet)) = next {
            let to = SocketAddrV4::new(address, 0).into();
            // A device that is away, or a firewall: the probe stays unanswered.
            let _ = self.socket.try_send_to(&packet, to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 5, 1, 0);
    const B: Ipv4Addr = Ipv4Addr::new(10, 5, 2, 0);

    /// A reply to a request, as a raw socket hands it over.
    fn reply(from: Ipv4Addr, request: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
        packet.extend(from.octets());
        packet.extend([0; 4]);
        packet.extend(request);
        packet[20] = 0;
        packet
    }

    #[test]
    fn every_peer_has_its_turn_and_answers_count_once() {
        let mut ledger = Ledger::default();
        ledger.set_peers(&[B, A]);
        let start = Instant::now();
        let (first, request) = ledger.next(7, 1, 1450, start).unwrap();
        let (second, _) = ledger.next(7, 2, 1450, start).unwrap();
        assert_eq!((first, second), (A, B));
        let later = start + Duration::from_millis(3);
        // From somebody else, with another identifier, changed: no answer.
        ledger.take(7, &reply(B, &request), later);
        ledger.take(8, &reply(A, &request), later);
        let mut changed = request.clone();
        changed[10] ^= 1;
        ledger.take(7, &reply(A, &changed), later);
        assert_eq!(ledger.health(A).unwrap().rtt, None);
        ledger.take(7, &reply(A, &request), later);
        let health = ledger.health(A).unwrap();
        assert_eq!(health.rtt, Some(Duration::from_millis(3)));
        assert_eq!(health.largest, Some(84));
        assert_eq!(ledger.next(7, 3, 1450, later).unwrap().0, A);
    }

    #[test]
    fn silence_is_noticed_and_loss_counted() {
        let mut ledger = Ledger::default();
        ledger.set_peers(&[A]);
        let now = Instant::now();
        for round in 0..5 {
            assert_eq!(ledger.health(A).unwrap().is_silent(), round > 3, "{round}");
            ledger.next(7, round, 1450, now);
        }
        assert_eq!(ledger.health(A).unwrap().loss_percent(), Some(100));
        for round in 0..40 {
            let (_, request) = ledger.next(7, round, 1450, now).unwrap();
            ledger.take(7, &reply(A, &request), now);
        }
        let health = ledger.health(A).unwrap();
        assert!(!health.is_silent());
        assert_eq!(
            (health.loss_percent(), health.largest),
            (Some(0), Some(1450))
        );
        ledger.set_peers(&[]);
        assert_eq!(ledger.health(A), None);
        assert_eq!(ledger.next(7, 0, 1450, now), None);
    }
}
