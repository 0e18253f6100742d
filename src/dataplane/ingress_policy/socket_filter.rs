//! The kernel's part of the peer check: a socket filter drops datagrams of unknown senders
//! before they take room in the receive buffer and a worker's time.

use std::sync::{Arc, Mutex, PoisonError};

use ipnet::Ipv4Net;

use super::{Enforcement, IngressPolicy, bpf};
use crate::route::table::RouteTable;
use crate::sys::udp::{Instruction, UdpSocket};

/// What is attached to the receiving sockets.
#[derive(Debug, PartialEq, Eq)]
enum Attached {
    /// Nothing: the workers check every sender.
    Nothing,
    Program(Vec<Instruction>),
}

/// The receiving sockets and their filter.
#[derive(Debug)]
pub(crate) struct SocketFilter {
    sockets: Vec<Arc<UdpSocket>>,
    /// Whether there is to be a filter at all.
    enabled: bool,
    allow_peers: Vec<Ipv4Net>,
    interface: Option<u32>,
    attached: Attached,
    /// Whether a capture wants to see unknown senders too.
    bypass: bool,
    /// Whether the reason for a missing filter has been logged.
    logged: bool,
    drops: Mutex<DropCounts>,
}

#[derive(Debug)]
struct DropCounts {
    /// Each socket's counter when it was last read.
    last: Vec<u32>,
    sum: u64,
}

impl SocketFilter {
    /// The sockets accept everything until [`Self::admit_peers`].
    pub(crate) fn new(sockets: Vec<Arc<UdpSocket>>, policy: &IngressPolicy) -> Self {
        Self {
            drops: Mutex::new(DropCounts {
                last: vec![0; sockets.len()],
                sum: 0,
            }),
            sockets,
            // Where unknown senders are only counted, their datagrams have to pass.
            enabled: policy.socket_filter && policy.mode == Enforcement::Enforce,
            allow_peers: policy.allow_peers.clone(),
            interface: policy.interface,
            attached: Attached::Nothing,
            bypass: false,
            logged: false,
        }
    }

    /// Accepts the peers of this table, and senders that are allowed without a lease. The
    /// kernel replaces a filter atomically: no datagram of a peer in both tables is lost.
    pub(crate) fn admit_peers(&mut self, table: &RouteTable) {
        if !self.enabled {
            return;
        }
        let wanted = match self.bypass {
            true => Attached::Nothing,
            false => bpf::program(table.sources(), &self.allow_peers, self.interface)
                .map_or(Attached::Nothing, Attached::Program),
        };
        if wanted == self.attached {
            return;
        }
        let result = match &wanted {
            Attached::Program(program) => self.attach(program),
            Attached::Nothing if self.bypass => {
                self.detach();
                Ok(())
            }
            Attached::Nothing => Err("there are too many peers for it".to_owned()),
        };
        self.attached = wanted;
        if let Err(reason) = result {
            self.give_up(&reason);
        }
    }

    /// Removes the filter for as long as a capture wants to see unknown senders. The workers
    /// drop their datagrams.
    pub(crate) fn set_bypass(&mut self, bypass: bool, table: &RouteTable) {
        self.bypass = bypass;
        self.admit_peers(table);
    }

    fn detach(&self) {
        for socket in &self.sockets {
            // It fails if there is none.
            let _ = socket.remove_filter();
        }
    }

    fn attach(&self, program: &[Instruction]) -> Result<(), String> {
        self.sockets.iter().try_for_each(|socket| {
            socket
                .set_filter(program)
                .map_err(|error| format!("the kernel refuses it: {error}"))
        })
    }

    /// Detaches the old filter, because it would drop the datagrams of new peers.
    fn give_up(&mut self, reason: &str) {
        self.detach();
        self.attached = Attached::Nothing;
        if !self.logged {
            self.logged = true;
            tracing::info!(
                event = "socket_filter",
                reason,
                "no socket filter: only the packet threads drop datagrams of unknown senders"
            );
        }
    }

    /// Datagrams that the kernel dropped at these sockets: refused by the filter, or no room
    /// in the buffer. A socket's own counter wraps at 2^32. It must be read before that:
    /// within an hour, at a million drops a second.
    pub(crate) fn drops(&self) -> u64 {
        let now = self.sockets.iter().map(|socket| socket.drops());
        let mut drops = self.drops.lock().unwrap_or_else(PoisonError::into_inner);
        let drops = &mut *drops;
        drops.sum += increase(&mut drops.last, now);
        drops.sum
    }

    /// Closes the sockets. Their drops stay counted.
    pub(crate) fn close(&mut self) {
        self.drops();
        self.sockets.clear();
    }
}

/// How much wrapping counters have increased since `last`, which becomes `now`.
fn increase(last: &mut [u32], now: impl Iterator<Item = u32>) -> u64 {
    let increases = last
        .iter_mut()
        .zip(now)
        .map(|(last, now)| u64::from(now.wrapping_sub(std::mem::replace(last, now))));
    increases.sum()
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

    fn filter(mode: Enforcement) -> (SocketFilter, Arc<UdpSocket>) {
        let any_port = SocketAddrV4::new(KNOWN, 0);
        let socket = Arc::new(UdpSocket::receiver(any_port).unwrap());
        (
            SocketFilter::new(vec![Arc::clone(&socket)], &policy(mode)),
            socket,
        )
    }

    #[test]
    fn a_wrapping_counter_goes_on_increasing() {
        let mut last = vec![0, 0];
        assert_eq!(
            increase(&mut last, [5, u32::MAX].into_iter()),
            5 + 0xffff_ffff
        );
        assert_eq!(increase(&mut last, [5, 2].into_iter()), 3);
        assert_eq!(increase(&mut last, [5, 2].into_iter()), 0);
    }

    #[test]
    fn datagrams_on_another_interface_are_dropped() {
        let any_port = SocketAddrV4::new(KNOWN, 0);
        let socket = Arc::new(UdpSocket::receiver(any_port).unwrap());
        // The first interface of a network namespace is its loopback.
        for (interface, expected) in [(1, vec![KNOWN, ALLOWED]), (2, vec![])] {
            let policy = IngressPolicy {
                interface: Some(interface),
                ..policy(Enforcement::Enforce)
            };
            let mut filter = SocketFilter::new(vec![Arc::clone(&socket)], &policy);
            filter.admit_peers(&table(&[KNOWN]));
            assert_eq!(arrived(&socket), expected, "{interface}");
        }
    }

    #[test]
    fn a_bypass_admits_unknown_senders_until_it_ends() {
        let socket = UdpSocket::receiver(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let socket = Arc::new(socket);
        let table = table(&[KNOWN]);
        let mut filter =
            SocketFilter::new(vec![Arc::clone(&socket)], &policy(Enforcement::Enforce));
        filter.admit_peers(&table);
        assert_eq!(arrived(&socket), [KNOWN, ALLOWED]);
        filter.set_bypass(true, &table);
        assert_eq!(arrived(&socket), [KNOWN, OTHER, ALLOWED]);
        filter.set_bypass(false, &table);
        assert_eq!(arrived(&socket), [KNOWN, ALLOWED]);
    }

    #[test]
    fn unknown_senders_are_dropped_by_the_kernel_and_new_peers_admitted() {
        let (mut filter, socket) = filter(Enforcement::Enforce);
        filter.admit_peers(&table(&[KNOWN]));
        assert_eq!(arrived(&socket), [KNOWN, ALLOWED]);
        assert_eq!(filter.drops(), 1);
        filter.admit_peers(&table(&[KNOWN, OTHER]));
        assert_eq!(arrived(&socket), [KNOWN, OTHER, ALLOWED]);
        filter.admit_peers(&table(&[OTHER]));
        assert_eq!(arrived(&socket), [OTHER, ALLOWED]);
        assert_eq!(filter.drops(), 2);
        filter.close();
        assert_eq!(filter.drops(), 2);
    }

    #[test]
    fn too_many_peers_remove_the_filter_and_fewer_restore_it() {
        let (mut filter, socket) = filter(Enforcement::Enforce);
        filter.admit_peers(&table(&[KNOWN]));
        let subnet = |i: u32| Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0a05_0000 + i), 32);
        let many = (0..5000).map(|i| {
            let endpoint = SocketAddrV4::new(Ipv4Addr::from_bits(0xc000_0000 + 2 * i), 8472);
            (
                subnet(i),
                RemoteVtep::new(endpoint, MacAddr([2; 6]), PeerId(0)),
            )
        });
        filter.admit_peers(&table(&[KNOWN]).with(many));
        assert_eq!(filter.attached, Attached::Nothing);
        assert_eq!(arrived(&socket), [KNOWN, OTHER, ALLOWED]);
        filter.admit_peers(&table(&[OTHER]));
        assert_eq!(arrived(&socket), [OTHER, ALLOWED]);
    }

    #[test]
    fn in_log_mode_unknown_senders_are_admitted() {
        let (mut filter, socket) = filter(Enforcement::Log);
        filter.admit_peers(&table(&[KNOWN]));
        assert_eq!(arrived(&socket), [KNOWN, OTHER, ALLOWED]);
    }
}
