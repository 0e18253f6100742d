//! The kernel's part of the peer check: datagrams from strangers are dropped at the socket,
//! before they take room in its buffer and time of a worker.

use std::sync::{Arc, Mutex, PoisonError};

use ipnet::Ipv4Net;

use crate::dataplane::ingress_policy::bpf;
use crate::dataplane::ingress_policy::{Enforcement, IngressPolicy};
use crate::route::table::RouteTable;
use crate::sys::udp::{Instruction, UdpSocket};

/// What the receiving sockets' filters hold.
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// No filter; the workers judge every sender.
    Open,
    /// This program.
    Filtered(Vec<Instruction>),
}

/// The receiving sockets and their filter.
#[derive(Debug)]
pub(crate) struct SocketFilter {
    sockets: Vec<Arc<UdpSocket>>,
    /// Whether there is to be a filter at all.
    wanted: bool,
    allow: Vec<Ipv4Net>,
    interface: Option<u32>,
    state: State,
    /// Whether somebody captures, and wants to see strangers too.
    lifted: bool,
    /// Whether it was said why there is no filter.
    told: bool,
    /// What each socket's drops were at the last look, and all of them so far.
    drops: Mutex<(Vec<u32>, u64)>,
}

impl SocketFilter {
    /// A gate that stands open until [`SocketFilter::admit`].
    pub(crate) fn new(sockets: Vec<Arc<UdpSocket>>, policy: &IngressPolicy) -> Self {
        Self {
            drops: Mutex::new((vec![0; sockets.len()], 0)),
            sockets,
            // Where strangers are only counted, they must come through.
            wanted: policy.socket_filter && policy.mode == Enforcement::Enforce,
            allow: policy.allow_peers.clone(),
            interface: policy.interface,
            state: State::Open,
            lifted: false,
            told: false,
        }
    }

    /// From now on the peers of this table come through, and who is allowed without a lease.
    /// The kernel exchanges a filter at once; no datagram of a peer in both tables is lost.
    pub(crate) fn admit(&mut self, table: &RouteTable) {
        if !self.wanted {
            return;
        }
        let wanted = match self.lifted {
            true => State::Open,
            false => bpf::program(table.sources(), &self.allow, self.interface)
                .map_or(State::Open, State::Filtered),
        };
        if wanted == self.state {
            return;
        }
        let refused = match &wanted {
            State::Filtered(program) => self.filter(program),
            State::Open if self.lifted => {
                self.remove();
                Ok(())
            }
            State::Open => Err("there are too many peers for it".to_owned()),
        };
        self.state = wanted;
        if let Err(reason) = refused {
            self.open(&reason);
        }
    }

    /// While somebody captures, strangers come as far as the workers, which drop them.
    pub(crate) fn lift(&mut self, lifted: bool, table: &RouteTable) {
        self.lifted = lifted;
        self.admit(table);
    }

    fn remove(&self) {
        for socket in &self.sockets {
            // There may be none.
            let _ = socket.remove_filter();
        }
    }

    fn filter(&self, program: &[Instruction]) -> Result<(), String> {
        self.sockets.iter().try_for_each(|socket| {
            socket
                .set_filter(program)
                .map_err(|error| format!("the kernel refuses it: {error}"))
        })
    }

    /// An old filter would keep new peers out: none is better.
    fn open(&mut self, reason: &str) {
        self.remove();
        self.state = State::Open;
        if !self.told {
            self.told = true;
            tracing::info!(
                event = "socket_filter",
                reason,
                "no socket filter: strangers are dropped by the packet threads alone"
            );
        }
    }

    /// Datagrams that the kernel dropped at these sockets: strangers', and those for which
    /// there was no room. A socket's own count wraps; it must be looked at before it has
    /// risen by 2^32: within an hour, at a million drops a second.
    pub(crate) fn drops(&self) -> u64 {
        let now = self.sockets.iter().map(|socket| socket.drops());
        let mut drops = self.drops.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, sum) = &mut *drops;
        *sum += risen(last, now);
        *sum
    }

    /// Lets the sockets go; what they counted is kept.
    pub(crate) fn close(&mut self) {
        self.drops();
        self.sockets.clear();
    }
}

/// How much counters that wrap have risen since `last`, which becomes `now`.
fn risen(last: &mut [u32], now: impl Iterator<Item = u32>) -> u64 {
    let rises = last.iter_mut().zip(now);
    let rises = rises.map(|(last, now)| u64::from(now.wrapping_sub(std::mem::replace(last, now))));
    rises.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::peer::{PeerId, RemoteVtep};
    use crate::sys::poll;
    use crate::sys::udp::{MessageHead, ReceiveBatch, SendBatch};
    use crate::wire::MacAddr;
    use std::net::{Ipv4Addr, SocketAddrV4};
    use std::os::fd::AsFd;
    use std::time::Duration;

    const KNOWN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
    const ALLOWED: Ipv4Addr = Ipv4Addr::new(127, 0, 3, 7);

    fn table(peers: &[Ipv4Addr]) -> RouteTable {
        let routes = peers.iter().zip(0u8..).map(|(address, number)| {
            let subnet = Ipv4Net::new_assert(Ipv4Addr::new(10, 5, number, 0), 24);
            let endpoint = SocketAddrV4::new(*address, 8472);
            (
                subnet,
                RemoteVtep::new(endpoint, MacAddr([2; 6]), PeerId(0)),
            )
        });
        RouteTable::empty(Ipv4Net::new_assert(Ipv4Addr::new(10, 5, 0, 0), 16), 24).with(routes)
    }

    fn policy(mode: Enforcement) -> IngressPolicy {
        IngressPolicy {
            allow_peers: vec!["127.0.3.0/24".parse().unwrap()],
            ..IngressPolicy::new(mode, Ipv4Net::default(), Ipv4Net::default())
        }
    }

    /// Sends one datagram from each address; returns from which one arrived.
    fn arrived(socket: &UdpSocket) -> Vec<Ipv4Addr> {
        let destination = socket.local_address().unwrap();
        for source in [KNOWN, OTHER, ALLOWED] {
            let sender = UdpSocket::sender(source).unwrap();
            let mut batch = SendBatch::new(1);
            let mut sending = batch.start();
            sending.message(MessageHead {
                destination,
                segment: None,
                ecn: 0,
            });
            sending.piece(b"a datagram");
            sending.send(&sender, 0).unwrap();
        }
        // Over loopback a datagram is at its socket when the call returns.
        let mut received = ReceiveBatch::new(8, 2048);
        let _ = poll::wait_readable([socket.as_fd()], Some(Duration::from_millis(100)));
        let count = received.receive(socket, usize::MAX).unwrap_or(0);
        (0..count)
            .map(|slot| *received.datagram(slot).source.ip())
            .collect()
    }

    fn gate(mode: Enforcement) -> (SocketFilter, Arc<UdpSocket>) {
        let any_port = SocketAddrV4::new(KNOWN, 0);
        let socket = Arc::new(UdpSocket::receiver(any_port).unwrap());
        (
            SocketFilter::new(vec![Arc::clone(&socket)], &policy(mode)),
            socket,
        )
    }

    #[test]
    fn a_count_that_wraps_goes_on_rising() {
        let mut last = vec![0, 0];
        assert_eq!(risen(&mut last, [5, u32::MAX].into_iter()), 5 + 0xffff_ffff);
        assert_eq!(risen(&mut last, [5, 2].into_iter()), 3);
        assert_eq!(risen(&mut last, [5, 2].into_iter()), 0);
    }

    #[test]
    fn over_another_interface_nobody_comes_in() {
        let any_port = SocketAddrV4::new(KNOWN, 0);
        let socket = Arc::new(UdpSocket::receiver(any_port).unwrap());
        // The first interface of a network namespace is its loopback.
        for (interface, expected) in [(1, vec![KNOWN, ALLOWED]), (2, vec![])] {
            let policy = IngressPolicy {
                interface: Some(interface),
                ..policy(Enforcement::Enforce)
            };
            let mut gate = SocketFilter::new(vec![Arc::clone(&socket)], &policy);
            gate.admit(&table(&[KNOWN]));
            assert_eq!(arrived(&socket), expected, "{interface}");
        }
    }

    #[test]
    fn a_capture_sees_strangers_and_they_are_kept_out_again() {
        let socket = UdpSocket::receiver(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let socket = Arc::new(socket);
        let table = table(&[KNOWN]);
        let mut gate = SocketFilter::new(vec![Arc::clone(&socket)], &policy(Enforcement::Enforce));
        gate.admit(&table);
        assert_eq!(arrived(&socket), [KNOWN, ALLOWED]);
        gate.lift(true, &table);
        assert_eq!(arrived(&socket), [KNOWN, OTHER, ALLOWED]);
        gate.lift(false, &table);
        assert_eq!(arrived(&socket), [KNOWN, ALLOWED]);
    }

    #[test]
    fn strangers_are_dropped_by_the_kernel_and_newcomers_let_in() {
        let (mut gate, socket) = gate(Enforcement::Enforce);
        gate.admit(&table(&[KNOWN]));
        assert_eq!(arrived(&socket), [KNOWN, ALLOWED]);
        assert_eq!(gate.drops(), 1);
        gate.admit(&table(&[KNOWN, OTHER]));
        assert_eq!(arrived(&socket), [KNOWN, OTHER, ALLOWED]);
        gate.admit(&table(&[OTHER]));
        assert_eq!(arrived(&socket), [OTHER, ALLOWED]);
        assert_eq!(gate.drops(), 2);
        gate.close();
        assert_eq!(gate.drops(), 2);
    }

    #[test]
    fn too_many_peers_open_the_gate_and_fewer_close_it() {
        let (mut gate, socket) = gate(Enforcement::Enforce);
        gate.admit(&table(&[KNOWN]));
        let subnet = |i: u32| Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0a05_0000 + i), 32);
        let crowd = (0..5000).map(|i| {
            let endpoint = SocketAddrV4::new(Ipv4Addr::from_bits(0xc000_0000 + 2 * i), 8472);
            (
                subnet(i),
                RemoteVtep::new(endpoint, MacAddr([2; 6]), PeerId(0)),
            )
        });
        gate.admit(&table(&[KNOWN]).with(crowd));
        assert_eq!(gate.state, State::Open);
        assert_eq!(arrived(&socket), [KNOWN, OTHER, ALLOWED]);
        gate.admit(&table(&[OTHER]));
        assert_eq!(arrived(&socket), [OTHER, ALLOWED]);
    }

    #[test]
    fn where_strangers_are_only_counted_they_come_through() {
        let (mut gate, socket) = gate(Enforcement::Log);
        gate.admit(&table(&[KNOWN]));
        assert_eq!(arrived(&socket), [KNOWN, OTHER, ALLOWED]);
    }
}
