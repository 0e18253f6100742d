//! A host of either kind that receives handmade frames, and what its container gets of them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use uvxlan::dataplane::Dataplane;
use uvxlan::dataplane::counters::{Counter, Kind as CounterKind, Totals};
use uvxlan::dataplane::ingress_policy::{Enforcement, IngressPolicy};
use uvxlan::sys::poll;
use uvxlan::sys::udp::{MessageHead, ReceiveBatch, SendBatch, UdpSocket};
use uvxlan::testbed::{Container, Host, Topology};
use uvxlan::wire::vxlan::{DEFAULT_PORT, EncapTemplate};
use uvxlan::wire::{MacAddr, Vni};

use super::inner::step;
use super::wire::{
    End, KERNEL_MAC, Kind, MTU, OUR_MAC, UNDERLAY, kernel_subnet, network, our_subnet,
    policed_end_among,
};

/// A packet that the container got: the first four bytes of the payload, and the type of service.
pub(crate) type Arrived = (u32, u8);

/// Subnet, address and MAC of the second peer.
pub(crate) const OTHER_PEER: (Ipv4Net, Ipv4Addr, MacAddr) = (
    Ipv4Net::new_assert(Ipv4Addr::new(10, 3, 7, 0), 24),
    Ipv4Addr::new(192, 0, 2, 88),
    MacAddr([0x0e, 0, 0, 0, 0, 7]),
);

/// Number of the last frame.
const LAST: u32 = u32::MAX;

/// Numbers of the first frames.
const FIRST: std::ops::Range<u32> = LAST - 50..LAST;

/// A receiving host with a listening container.
pub(crate) struct Receiving {
    topology: Topology,
    end: End,
    container: Container,
    listener: UdpSocket,
}

impl Receiving {
    pub(crate) fn new(kind: Kind) -> Self {
        Self::with_end(|receiver, sender| {
            let peer = (kernel_subnet(), sender, KERNEL_MAC);
            End::start(kind, receiver, our_subnet(), OUR_MAC, peer)
        })
    }

    /// A host of ours that enforces the peer check, with or without the socket filter.
    pub(crate) fn guarded(socket_filter: bool) -> Self {
        Self::judging(|_, _, policy| policy.socket_filter = socket_filter)
    }

    /// A host of ours with this ingress policy, which may depend on sender and receiver. It has a
    /// second peer, which sends nothing.
    pub(crate) fn judging(rules: impl FnOnce(&Host, &Host, &mut IngressPolicy)) -> Self {
        Self::with_end(|receiver, sender| {
            let peers = [(kernel_subnet(), sender.address(), KERNEL_MAC), OTHER_PEER];
            let mut policy = IngressPolicy::new(Enforcement::Enforce, network(), our_subnet());
            rules(sender, receiver, &mut policy);
            let end = policed_end_among(receiver, our_subnet(), OUR_MAC, &peers, policy);
            End::Ours(Box::new(end))
        })
    }

    fn with_end(end: impl FnOnce(&Host, &Host) -> End) -> Self {
        let topology = Topology::two_hosts().unwrap();
        let (sender, receiver) = topology.pair().unwrap();
        let end = end(receiver, sender);
        let container = receiver
            .add_container(our_subnet(), u32::from(MTU))
            .unwrap();
        let address = SocketAddrV4::new(container.address(), 0);
        let listener = container
            .namespace()
            .run(|| UdpSocket::receiver(address).unwrap())
            .unwrap();
        let receiving = Self {
            topology,
            end,
            container,
            listener,
        };
        receiving.open_the_way();
        receiving
    }

    /// Sends good frames until one arrives at once and is counted. The first frames over new links
    /// are sometimes lost, with the kernel's vxlan as well, or wait a second for a neighbour's
    /// address; a frame under test is sent only once.
    fn open_the_way(&self) {
        let (sender, _) = self.topology.pair().unwrap();
        // One socket keeps the frames in order: none arrives after the one that we wait for.
        let socket = sender_socket(sender, sender.address());
        let mut batch = SendBatch::new(1);
        let mut arrived = Vec::new();
        for number in FIRST {
            let before = self.dataplane().map(Dataplane::totals);
            send_one(
                &mut batch,
                &socket,
                self.address(),
                &self.frame(number, 0),
                0,
            );
            let deadline = Instant::now() + Duration::from_millis(200);
            while let Some(timeout) = deadline.checked_duration_since(Instant::now()) {
                self.take(&mut arrived, timeout);
                if arrived.iter().any(|(found, _)| *found == number) {
                    if let (Some(dataplane), Some(before)) = (self.dataplane(), before) {
                        settled(dataplane, &before, 1);
                    }
                    return;
                }
            }
        }
        let totals = self.dataplane().map(Dataplane::totals);
        panic!("none of {} good frames arrives: {totals:#?}", FIRST.len());
    }

    /// The host's address on the underlay.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.topology.pair().unwrap().1.address()
    }

    /// The sending host's address on the underlay.
    pub(crate) fn sender(&self) -> Ipv4Addr {
        self.topology.pair().unwrap().0.address()
    }

    /// Sender and receiver.
    pub(crate) fn hosts(&self) -> (&Host, &Host) {
        self.topology.pair().unwrap()
    }

    /// The packet loop, if the endpoint is ours.
    pub(crate) fn dataplane(&self) -> Option<&Dataplane> {
        match &self.end {
            End::Ours(dataplane) => Some(dataplane),
            End::Kernel(_) => None,
        }
    }

    /// The same, to stop it.
    pub(crate) fn dataplane_mut(&mut self) -> Option<&mut Dataplane> {
        match &mut self.end {
            End::Ours(dataplane) => Some(dataplane),
            End::Kernel(_) => None,
        }
    }

    /// An inner UDP packet to the listener with this number and type of service.
    pub(crate) fn packet(&self, number: u32, tos: u8) -> Vec<u8> {
        let from = kernel_subnet().hosts().nth(1).unwrap();
        let ip = step(
            from,
            self.container.address(),
            63,
            number as u16,
            |header| {
                header.ecn = etherparse::IpEcn::try_new(tos & 3).unwrap();
            },
        );
        let port = self.listener.local_address().unwrap().port();
        let mut payload = number.to_be_bytes().to_vec();
        payload.extend([0x5a; 36]);
        let mut bytes = Vec::new();
        ip.udp(40_000, port).write(&mut bytes, &payload).unwrap();
        bytes
    }

    /// The frame as a peer would send it.
    pub(crate) fn frame(&self, number: u32, tos: u8) -> Vec<u8> {
        let encapsulation = EncapTemplate::ipv4(Vni::DEFAULT, KERNEL_MAC).towards(OUR_MAC);
        [encapsulation.as_slice(), &self.packet(number, tos)].concat()
    }

    /// Sends frames, each with an outer ECN codepoint, and returns what the container got.
    pub(crate) fn send(&self, frames: &[(Vec<u8>, u8)]) -> Vec<Arrived> {
        self.send_from(None, frames)
    }

    /// As [`Self::send`], from another address, which the sender gets for it.
    pub(crate) fn send_from(
        &self,
        from: Option<Ipv4Addr>,
        frames: &[(Vec<u8>, u8)],
    ) -> Vec<Arrived> {
        self.send_to(self.address(), from, frames)
    }

    /// As [`Self::send_from`], to another address of the receiver. The last frame takes the usual
    /// path.
    pub(crate) fn send_to(
        &self,
        to: Ipv4Addr,
        from: Option<Ipv4Addr>,
        frames: &[(Vec<u8>, u8)],
    ) -> Vec<Arrived> {
        let (sender, _) = self.topology.pair().unwrap();
        if let Some(address) = from {
            let added = sender.node().netlink(async |netlink| {
                let below = netlink.expect_link(UNDERLAY).await?;
                match netlink.add_address(below.index, address, 24).await {
                    // From an earlier frame.
                    Err(error) if error.is_exists() => Ok(()),
                    added => added,
                }
            });
            added.unwrap();
        }
        let own = sender_socket(sender, sender.address());
        let other = from.map(|address| sender_socket(sender, address));
        let last = (self.frame(LAST, 0), 0);
        let mut batch = SendBatch::new(1);
        let mut arrived = Vec::new();
        for (number, (frame, ecn)) in frames.iter().chain([&last]).enumerate() {
            let is_last = number == frames.len();
            let socket = match &other {
                Some(other) if !is_last => other,
                _ => &own,
            };
            let to = if is_last { self.address() } else { to };
            send_one(&mut batch, socket, to, frame, *ecn);
            self.take(&mut arrived, Duration::ZERO);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while arrived.iter().all(|(number, _)| *number != LAST) {
            assert!(
                Instant::now() < deadline,
                "the last frame is good, and of {arrived:?} none is that: {:#?}",
                self.dataplane().map(Dataplane::totals)
            );
            self.take(&mut arrived, Duration::from_millis(100));
        }
        // Another packet thread handles another sender's frames, and may be behind.
        if other.is_some() && arrived.len() == 1 {
            self.take(&mut arrived, Duration::from_millis(300));
        }
        arrived.retain(|(number, _)| *number != LAST);
        arrived
    }

    fn take(&self, arrived: &mut Vec<Arrived>, timeout: Duration) {
        let _ = poll::wait_readable([self.listener.as_fd()], Some(timeout));
        let mut batch = ReceiveBatch::new(64, 2048);
        let Ok(count) = batch.receive(&self.listener, usize::MAX) else {
            return;
        };
        for slot in 0..count {
            let info = batch.datagram(slot);
            let bytes = &batch.buffer()[info.start..info.start + info.len];
            let number = bytes
                .first_chunk()
                .map_or(0, |head| u32::from_be_bytes(*head));
            arrived.push((number, info.tos));
        }
    }
}

/// A socket of the sending host, bound to this address.
fn sender_socket(sender: &Host, address: Ipv4Addr) -> UdpSocket {
    let open = || UdpSocket::sender(address).unwrap();
    sender.namespace().run(open).unwrap()
}

/// Sends one frame to the tunnel port.
fn send_one(batch: &mut SendBatch, socket: &UdpSocket, to: Ipv4Addr, frame: &[u8], ecn: u8) {
    let mut sending = batch.start();
    sending.message(MessageHead {
        destination: SocketAddrV4::new(to, DEFAULT_PORT),
        segment: None,
        ecn,
    });
    sending.piece(frame);
    sending.send(socket, 0).unwrap();
}

/// The counters, once so many more packets than before were read and processed: another worker
/// than the peer's may have those of an unknown source.
pub(crate) fn settled(dataplane: &Dataplane, before: &Totals, packets: u64) -> Totals {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let now = dataplane.totals();
        let read = now.get(Counter::UdpRead);
        let judged = now.get(Counter::Delivered) + now.sum(CounterKind::DropIn);
        let all = read - before.get(Counter::UdpRead) >= packets && judged == read;
        if all || Instant::now() >= deadline {
            return now;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
