//! The task that sends probes, and answers those of peers.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket as AsyncSocket;

use super::peer::{Disposition, Probe};
use super::{Incoming, Method, Setup, Shared, Target};
use crate::daemon::sleep;
use crate::dataplane::counters::Counter;
use crate::dataplane::tap::{Direction, Observation, ObservationPoint};
use crate::host::echo::{HEADERS, raw};
use crate::sys::udp::{self, UdpSocket};
use crate::wire::icmp::echo::{self, Received};
use crate::wire::probe::Message;

/// Between two probes, to any peers: 500 a second at most.
const SPACING: Duration = Duration::from_millis(2);
/// How much of that is made up for after this thread was delayed.
const MAX_BURST: Duration = Duration::from_millis(50);

pub(super) struct Prober {
    setup: Setup,
    incoming: Incoming,
    shared: Arc<Shared>,
    echo: Option<AsyncSocket>,
    /// Sends inside of the tunnel, from this address.
    tunnel: Option<(Ipv4Addr, UdpSocket)>,
    identifier: u16,
    sequence: u16,
}

impl Prober {
    pub(super) fn new(setup: Setup, incoming: Incoming, shared: Arc<Shared>) -> Self {
        let echo = open_echo(setup.own).inspect_err(|error| {
            tracing::warn!(
                event = "no_probes", %error,
                "peers that run another program are not probed: no socket for ICMP"
            );
        });
        Self {
            setup,
            incoming,
            shared,
            echo: echo.ok(),
            tunnel: None,
            identifier: rand::random(),
            sequence: 0,
        }
    }

    pub(super) async fn run(mut self) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let mut earliest = Instant::now();
        loop {
            let due = self.shared.lock().schedule.due();
            let due = due.map(|due| due.max(earliest));
            tokio::select! {
                () = self.incoming.arrived.notified() => self.receive(),
                () = self.shared.peers_changed.notified() => {}
                () = sleep::until(due) => {
                    self.send_next();
                    let now = Instant::now();
                    earliest = (earliest + SPACING).max(now.checked_sub(MAX_BURST).unwrap_or(now));
                }
                read = receive_from(self.echo.as_ref(), &mut buffer) => match read {
                    Ok(length) => self.receive_echo(&buffer[..length]),
                    // Errors of earlier probes (no route, a firewall) are reported here.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                },
            }
        }
    }

    fn send_next(&mut self) {
        let (now, setup) = (Instant::now(), &self.setup);
        let may = |target: &Target| promises_replies(setup, target);
        let next = self.shared.lock().schedule.next(rand::random(), now, may);
        let Some(probe) = next else {
            return;
        };
        let sent = match probe.method {
            Method::InBand => {
                self.incoming.queue.count(Counter::ProbesSent);
                self.send(&probe.target, &probe.message)
            }
            Method::Echo => self.send_echo(&probe),
        };
        // After any other error (no device, a firewall) the probe stays unanswered.
        if let Err(error) = sent
            && error.raw_os_error() == Some(libc::EMSGSIZE)
        {
            self.shared.lock().schedule.too_long(&probe);
        }
    }

    fn send_echo(&mut self, probe: &Probe) -> io::Result<()> {
        let Some(socket) = &self.echo else {
            return Ok(());
        };
        self.sequence = self.sequence.wrapping_add(1);
        let mut body = probe.message.nonce.to_be_bytes().to_vec();
        body.resize(usize::from(probe.message.length).saturating_sub(HEADERS), 0);
        let packet = echo::request(self.identifier, self.sequence, &body);
        let to = SocketAddrV4::new(probe.target.subnet.network(), 0).into();
        socket.try_send_to(&packet, to).map(|_| ())
    }

    fn receive_echo(&self, packet: &[u8]) {
        let at = Instant::now();
        let reply = Received::parse(packet).and_then(|message| {
            let (_, body) = message.reply(self.identifier)?;
            let nonce = body.first_chunk().copied().map(u64::from_be_bytes)?;
            let length = u16::try_from(body.len() + HEADERS).ok()?;
            Some((Ipv4Addr::from(message.source), nonce, length))
        });
        if let Some((from, nonce, length)) = reply {
            let mut state = self.shared.lock();
            state.schedule.receive_echo(from, nonce, length, at);
        }
    }

    /// Reads what packet threads have queued, and replies to requests.
    fn receive(&mut self) {
        while let Some(heard) = self.incoming.queue.next() {
            let disposition = self.shared.lock().schedule.receive(&heard, Instant::now());
            let event = match disposition {
                Disposition::Accepted => continue,
                Disposition::Reply(to, message) if promises_replies(&self.setup, &to) => {
                    // One that cannot be sent is lost, as any may be.
                    let _ = self.send(&to, &message);
                    Counter::ProbesAnswered
                }
                Disposition::Reply(..) | Disposition::Stray => Counter::ProbeStrays,
                Disposition::Replay => Counter::ProbeReplays,
                Disposition::Excess => Counter::ProbeExcess,
            };
            self.incoming.queue.count(event);
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
                let socket = UdpSocket::unfragmented_sender(source)?;
                &self.tunnel.insert((source, socket)).1
            }
        };
        socket.send_to(&datagram, destination)?;
        let sent_from = socket.local_address().map_or(0, |own| own.port());
        self.setup.observer.refresh();
        self.setup.observer.report(&Observation {
            point: ObservationPoint::Outer {
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

/// Opens a raw socket for ICMP. tokio knows it as a UDP socket: both only send and receive
/// datagrams.
fn open_echo(own: Ipv4Addr) -> io::Result<AsyncSocket> {
    let socket = raw(own)?;
    udp::set_dont_fragment(&socket)?;
    socket.set_nonblocking(true)?;
    AsyncSocket::from_std(socket.into())
}

async fn receive_from(socket: Option<&AsyncSocket>, buffer: &mut [u8]) -> io::Result<usize> {
    match socket {
        Some(socket) => socket.recv(buffer).await,
        None => std::future::pending().await,
    }
}

/// Whether the peer still is who it was when it was scheduled, by its lease and by the route
/// table.
fn promises_replies(setup: &Setup, target: &Target) -> bool {
    let network = target.subnet.network();
    let by_lease = setup.leases.with(|leases| {
        let lease = leases.peer(network);
        lease.is_some_and(|lease| Target::new(lease, target.direct) == *target)
    });
    let table = setup.routes.current();
    by_lease
        && target.replies
        && table.lookup(network).is_some_and(|peer| {
            *peer.endpoint().ip() == target.public_ip && peer.vtep_mac() == target.mac
        })
}
