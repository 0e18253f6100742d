//! Asks each peer, now and then, whether it is there, for how long the way takes, what is
//! lost on it and in which direction, and how long a packet may be.
//!
//! Peers whose lease promises answers ([`crate::wire::probe`]) are asked inside of the tunnel,
//! with DF outside: what does not fit in one piece is lost. Whether the lease still promises
//! is looked up for each probe, so that none goes to a kernel that has taken over. All others
//! are asked by ICMP echo from our overlay address to the network address of their subnet,
//! which every VTEP of flannel's and ours has on its device.

mod asked;
mod ledger;
mod loss;
mod path;
pub mod round_trips;
mod target;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use tokio::net::UdpSocket as AnySocket;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

pub use self::target::{Health, Means, Target};

use self::ledger::{Ask, Ledger, Outcome};
use crate::control::SizeCounts;
use crate::daemon::serve::at;
use crate::dataplane::counters::Counter;
use crate::dataplane::inbound::header_checks::Vtep;
use crate::dataplane::inbound::probes::Inbox;
use crate::dataplane::tap::{Direction, Sighting, View as TapView, Viewer};
use crate::host::echo::{HEADERS, raw};
use crate::route::publish::Routes;
use crate::subnet::manager::View;
use crate::sys::udp::{self, UdpSocket};
use crate::wire::icmp::echo::{self, Received};
use crate::wire::probe::Message;

/// Between two probes, to whomever: 500 a second at most.
const PACE: Duration = Duration::from_millis(2);
/// So much may be made up for where this thread was away.
const BEHIND: Duration = Duration::from_millis(50);

/// Where packet threads leave what they hear.
#[derive(Debug, Clone)]
pub struct Post {
    inbox: Arc<Inbox>,
    arrived: Arc<Notify>,
}

impl Post {
    /// None, where nobody is probed: probes of peers are not answered then.
    #[must_use]
    pub fn new(interval: Duration) -> Option<Self> {
        let arrived = Arc::new(Notify::new());
        let wake = Arc::clone(&arrived);
        (!interval.is_zero()).then(|| Self {
            inbox: Arc::new(Inbox::new(move || wake.notify_one())),
            arrived,
        })
    }

    /// The packet threads' side.
    #[must_use]
    pub fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.inbox)
    }
}

/// What probes need to know.
#[derive(Debug)]
pub struct Setup {
    /// Our VTEP.
    pub vtep: Vtep,
    /// UDP port of the tunnels.
    pub port: u16,
    /// Our subnet's network address.
    pub own: Ipv4Addr,
    /// Address from which datagrams are sent.
    pub source: Ipv4Addr,
    /// MTU of the device.
    pub mtu: u16,
    /// Pause between two probes of a peer.
    pub interval: Duration,
    /// Where packets go now.
    pub routes: Routes,
    /// What the leases say now.
    pub leases: View,
    /// Who captures.
    pub viewer: Viewer,
}

/// Running probes; they end when this is dropped.
#[derive(Debug)]
pub struct Probes(Option<(Arc<Shared>, JoinHandle<()>)>);

#[derive(Debug)]
struct Shared {
    books: Mutex<Books>,
    changed: Notify,
}

#[derive(Debug)]
struct Books {
    ledger: Ledger,
    source: Ipv4Addr,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Books> {
        // No panic can leave the books half written.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        if let Some((_, task)) = self.0.take() {
            task.abort();
        }
    }
}

impl Probes {
    /// Probes from now on, if there is a post.
    #[must_use]
    pub fn start(setup: Setup, post: Option<Post>) -> Self {
        let Some(post) = post else {
            return Self(None);
        };
        let shared = Arc::new(Shared {
            books: Mutex::new(Books {
                ledger: Ledger::new(rand::random(), setup.mtu, setup.interval),
                source: setup.source,
            }),
            changed: Notify::new(),
        });
        let echo = open_echo(setup.own).inspect_err(|error| {
            tracing::warn!(
                event = "no_probes", %error,
                "peers that run another program are not probed: no socket for ICMP"
            );
        });
        let prober = Prober {
            setup,
            post,
            shared: Arc::clone(&shared),
            echo: echo.ok(),
            tunnel: None,
            identifier: rand::random(),
            sequence: 0,
        };
        Self(Some((shared, tokio::spawn(prober.run()))))
    }

    /// From now on these peers.
    pub fn set_peers(&self, targets: &[Target]) {
        if let Some((shared, _)) = &self.0
            && shared.lock().ledger.set_peers(targets, Instant::now())
        {
            shared.changed.notify_one();
        }
    }

    /// The device has another MTU.
    pub fn set_mtu(&self, mtu: u16) {
        if let Some((shared, _)) = &self.0 {
            shared.lock().ledger.set_mtu(mtu);
        }
    }

    /// Datagrams are sent from another address.
    pub fn set_source(&self, source: Ipv4Addr) {
        if let Some((shared, _)) = &self.0 {
            shared.lock().source = source;
        }
    }

    /// Round trips of all answered probes; none where peers are not probed.
    #[must_use]
    pub fn round_trips(&self) -> Option<SizeCounts> {
        let (shared, _) = self.0.as_ref()?;
        Some(shared.lock().ledger.round_trips().told())
    }

    /// What is known of a peer.
    #[must_use]
    pub fn health(&self, subnet: Ipv4Net) -> Option<Health> {
        let (shared, _) = self.0.as_ref()?;
        shared.lock().ledger.health(subnet)
    }
}

/// A raw socket for ICMP in the clothes of tokio's UDP socket: both only send and receive
/// datagrams.
fn open_echo(own: Ipv4Addr) -> io::Result<AnySocket> {
    let socket = raw(own)?;
    udp::never_cut(&socket)?;
    socket.set_nonblocking(true)?;
    AnySocket::from_std(socket.into())
}

struct Prober {
    setup: Setup,
    post: Post,
    shared: Arc<Shared>,
    echo: Option<AnySocket>,
    /// Sends inside of the tunnel, and its address.
    tunnel: Option<(Ipv4Addr, UdpSocket)>,
    identifier: u16,
    sequence: u16,
}

impl Prober {
    async fn run(mut self) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let mut free = Instant::now();
        loop {
            let due = self.shared.lock().ledger.due();
            let due = due.map(|due| due.max(free));
            tokio::select! {
                () = self.post.arrived.notified() => self.hear(),
                () = self.shared.changed.notified() => {}
                () = at(due) => {
                    self.ask();
                    let now = Instant::now();
                    free = (free + PACE).max(now.checked_sub(BEHIND).unwrap_or(now));
                }
                read = receive(self.echo.as_ref(), &mut buffer) => match read {
                    Ok(length) => self.take_echo(&buffer[..length]),
                    // Errors of earlier probes (no route, a firewall) come back here.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                },
            }
        }
    }

    /// Asks whoever is due.
    fn ask(&mut self) {
        let (now, setup) = (Instant::now(), &self.setup);
        let may = |target: &Target| promises(setup, target);
        let next = self.shared.lock().ledger.next(rand::random(), now, may);
        let Some(ask) = next else {
            return;
        };
        let sent = match ask.means {
            Means::InBand => {
                self.post.inbox.count(Counter::ProbesSent);
                self.send(&ask.target, &ask.message)
            }
            Means::Echo => self.send_echo(&ask),
        };
        // Anything else (a device that is away, a firewall): the probe stays unanswered.
        if let Err(error) = sent
            && error.raw_os_error() == Some(libc::EMSGSIZE)
        {
            self.shared.lock().ledger.refused(&ask);
        }
    }

    fn send_echo(&mut self, ask: &Ask) -> io::Result<()> {
        let Some(socket) = &self.echo else {
            return Ok(());
        };
        self.sequence = self.sequence.wrapping_add(1);
        let mut body = ask.message.nonce.to_be_bytes().to_vec();
        body.resize(usize::from(ask.message.length).saturating_sub(HEADERS), 0);
        let packet = echo::request(self.identifier, self.sequence, &body);
        let to = SocketAddrV4::new(ask.target.subnet.network(), 0).into();
        socket.try_send_to(&packet, to).map(|_| ())
    }

    fn take_echo(&self, packet: &[u8]) {
        let at = Instant::now();
        let reply = Received::parse(packet).and_then(|message| {
            let (_, body) = message.reply(self.identifier)?;
            let nonce = body.first_chunk().copied().map(u64::from_be_bytes)?;
            let length = u16::try_from(body.len() + HEADERS).ok()?;
            Some((Ipv4Addr::from(message.source), nonce, length))
        });
        if let Some((from, nonce, length)) = reply {
            self.shared.lock().ledger.echoed(from, nonce, length, at);
        }
    }

    /// Takes in what packet threads have left, and answers what is to be answered.
    fn hear(&mut self) {
        while let Some(heard) = self.post.inbox.next() {
            let outcome = self.shared.lock().ledger.heard(&heard, Instant::now());
            let event = match outcome {
                Outcome::Taken => continue,
                Outcome::Answer(to, message) if promises(&self.setup, &to) => {
                    // It is lost then, as any may be.
                    let _ = self.send(&to, &message);
                    Counter::ProbesAnswered
                }
                Outcome::Answer(..) | Outcome::Stray => Counter::ProbeStrays,
                Outcome::Replay => Counter::ProbeReplays,
                Outcome::Excess => Counter::ProbeExcess,
            };
            self.post.inbox.count(event);
        }
    }

    fn send(&mut self, to: &Target, message: &Message) -> io::Result<()> {
        let Setup { vtep, port, .. } = &self.setup;
        let datagram = message.datagram(vtep.vni, vtep.mac, to.mac);
        let destination = SocketAddrV4::new(to.public_ip, *port);
        let source = self.shared.lock().source;
        let socket = match &self.tunnel {
            Some((address, socket)) if *address == source => socket,
            _ => {
                let socket = UdpSocket::whole_sender(source)?;
                &self.tunnel.insert((source, socket)).1
            }
        };
        socket.send_to(&datagram, destination)?;
        let sent_from = socket.local_address().map_or(0, |own| own.port());
        self.setup.viewer.refresh();
        self.setup.viewer.show(&Sighting {
            view: TapView::Outer {
                remote: destination,
                port: sent_from,
                tos: 0,
            },
            direction: Direction::Out,
            pieces: [&datagram, &[]],
            dropped: None,
        });
        Ok(())
    }
}

/// Whether a peer is at this moment who it was when its turn was planned: by its lease, and
/// by the table that packets go by.
fn promises(setup: &Setup, target: &Target) -> bool {
    let network = target.subnet.network();
    let by_lease = setup.leases.with(|leases| {
        let lease = leases.peer(network);
        lease.is_some_and(|lease| Target::new(lease, target.direct) == *target)
    });
    let table = setup.routes.current();
    by_lease
        && target.answers
        && table.lookup(network).is_some_and(|peer| {
            *peer.endpoint().ip() == target.public_ip && peer.vtep_mac() == target.mac
        })
}

async fn receive(socket: Option<&AnySocket>, buffer: &mut [u8]) -> io::Result<usize> {
    match socket {
        Some(socket) => socket.recv(buffer).await,
        None => std::future::pending().await,
    }
}
