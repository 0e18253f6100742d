//! From a plan to the sockets: one sendmmsg for each source port, and what to do when
//! the kernel refuses.

use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use super::batch::{Datagram, Message, SendPlan};
use crate::dataplane::counters::{Call, Counter, Counters};
use crate::dataplane::tap::{Direction, Observation, ObservationPoint, Observer};
use crate::sys::poll;
use crate::sys::udp::{MessageHead, PathMtuSocket, SendBatch, Sending, UdpSocket};
use crate::wire::vxlan::ENCAP_LEN;

/// Messages of one call at most.
const MESSAGES: usize = 64;
/// Outer IPv4 and UDP header.
const IP_UDP_LEN: usize = 28;
/// How long a worker waits for a full socket, once a flush. Longer, and the TUN queue
/// behind it overflows without being counted by us.
const PATIENCE: Duration = Duration::from_millis(1);

/// Sends plans through a pool of sockets, each a source port.
pub struct Transmitter {
    sockets: Arc<[UdpSocket]>,
    path: PathMtuSocket,
    send: SendBatch,
    /// For datagrams of a refused message, one by one.
    resend: SendBatch,
    counters: Arc<Counters>,
    segmentation: Segmentation,
    too_long: Option<SocketAddrV4>,
    observer: Observer,
    /// Source port of each socket.
    ports: Vec<u16>,
}

/// Whether the kernel cuts messages into datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segmentation {
    /// By `UDP_SEGMENT`.
    Kernel,
    /// It refused at run time, or was told not to.
    Off,
}

/// Where the bytes of a plan's spans lie.
#[derive(Clone, Copy)]
pub struct Buffers<'a> {
    /// Arena of header blocks.
    pub heads: &'a [u8],
    /// Buffer of packets.
    pub packets: &'a [u8],
}

/// What to do with the message that the kernel refused.
enum ErrorAction {
    Again,
    WaitAndRetry,
    OneByOne,
    Drop(Counter),
}

impl Transmitter {
    /// A transmitter over these sockets, 1 to 64 of them, and a probe with their address.
    #[must_use]
    pub fn new(
        sockets: Arc<[UdpSocket]>,
        path: PathMtuSocket,
        counters: Arc<Counters>,
        segmentation: Segmentation,
        observer: Observer,
    ) -> Self {
        let port = |socket: &UdpSocket| socket.local_address().map_or(0, |own| own.port());
        Self {
            ports: sockets.iter().map(port).collect(),
            sockets,
            path,
            send: SendBatch::new(MESSAGES),
            resend: SendBatch::new(MESSAGES * 2),
            counters,
            segmentation,
            too_long: None,
            observer,
        }
    }

    /// Who captures what is sent.
    #[must_use]
    pub const fn observer(&self) -> &Observer {
        &self.observer
    }

    /// The same, to look for changes.
    pub const fn observer_mut(&mut self) -> &mut Observer {
        &mut self.observer
    }

    /// Where datagrams went that are longer than the path takes, if there were any.
    pub const fn take_too_long(&mut self) -> Option<SocketAddrV4> {
        self.too_long.take()
    }

    /// The largest IP packet in bytes that leaves for this destination in one piece.
    ///
    /// # Errors
    /// When there is no route.
    pub fn path_mtu(&self, destination: SocketAddrV4) -> io::Result<u16> {
        self.path.mtu(destination)
    }

    /// Number of source ports.
    #[must_use]
    pub fn buckets(&self) -> usize {
        self.sockets.len()
    }

    /// Whether messages may have more than one datagram.
    #[must_use]
    pub const fn segmentation(&self) -> Segmentation {
        self.segmentation
    }

    /// Sends everything, or counts what could not be sent; never waits longer than a
    /// millisecond for each socket.
    pub fn flush(&mut self, plan: &SendPlan, buffers: Buffers<'_>) {
        let used = plan
            .messages()
            .iter()
            .fold(0u64, |used, message| used | 1 << message.key.bucket);
        for bucket in 0..self.sockets.len() {
            if used & (1 << bucket) != 0 {
                self.flush_bucket(bucket, plan, buffers);
            }
        }
    }

    fn flush_bucket(&mut self, bucket: usize, plan: &SendPlan, buffers: Buffers<'_>) {
        let mut messages = plan
            .messages()
            .iter()
            .filter(|message| usize::from(message.key.bucket) == bucket)
            .peekable();
        let mut chunk: [Option<&Message>; MESSAGES] = [None; MESSAGES];
        while messages.peek().is_some() {
            let Self {
                sockets,
                path,
                send,
                resend,
                counters,
                segmentation,
                too_long,
                observer,
                ports,
            } = self;
            let mut sending = send.start();
            while !sending.is_full() {
                let Some(message) = messages.next() else {
                    break;
                };
                chunk[sending.len()] = Some(message);
                sending.message(head_of(message, message.count > 1));
                for datagram in plan.datagrams(message) {
                    if datagram.head.len > 0 {
                        sending.piece(&buffers.heads[datagram.head.range()]);
                    }
                    sending.piece(&buffers.packets[datagram.payload.range()]);
                }
            }
            let socket = &sockets[bucket];
            Attempt {
                socket,
                path,
                resend,
                counters,
                segmentation,
                too_long,
                scene: Scene {
                    plan,
                    buffers,
                    observer,
                    port: ports[bucket],
                },
            }
            .send(sending, &chunk);
        }
    }
}

fn head_of(message: &Message, segmented: bool) -> MessageHead {
    MessageHead {
        destination: message.key.destination,
        // A single datagram goes without: kernels up to early 2025 refuse UDP_SEGMENT
        // where the path MTU is smaller than the segment.
        segment: if segmented {
            u16::try_from(message.segment_len).ok()
        } else {
            None
        },
        ecn: message.key.ecn,
    }
}

/// One sendmmsg with its retries.
struct Attempt<'a> {
    socket: &'a UdpSocket,
    path: &'a PathMtuSocket,
    resend: &'a mut SendBatch,
    counters: &'a Counters,
    segmentation: &'a mut Segmentation,
    too_long: &'a mut Option<SocketAddrV4>,
    scene: Scene<'a>,
}

/// The datagrams of a plan, and who captures them.
#[derive(Clone, Copy)]
struct Scene<'a> {
    plan: &'a SendPlan,
    buffers: Buffers<'a>,
    observer: &'a Observer,
    /// Source port.
    port: u16,
}

impl Scene<'_> {
    /// Shows `count` datagrams of a message, from number `from` on.
    #[inline]
    fn show(&self, message: &Message, from: usize, count: usize, dropped: Option<Counter>) {
        if self.observer.is_open() {
            for datagram in self.plan.datagrams(message).skip(from).take(count) {
                self.show_one(message, datagram, dropped);
            }
        }
    }

    #[cold]
    fn show_one(&self, message: &Message, datagram: &Datagram, dropped: Option<Counter>) {
        self.observer.show(&Observation {
            point: ObservationPoint::Outer {
                remote: message.key.destination,
                port: self.port,
                tos: message.key.ecn,
            },
            direction: Direction::Out,
            pieces: [
                &self.buffers.heads[datagram.head.range()],
                &self.buffers.packets[datagram.payload.range()],
            ],
            dropped,
        });
    }
}

impl Attempt<'_> {
    fn send(&mut self, mut sending: Sending<'_>, messages: &[Option<&Message>]) {
        let mut at = 0;
        let mut refusals = 0;
        let mut patient = true;
        while at < sending.len() {
            self.counters.add(Counter::SendCalls, 1);
            match sending.send(self.socket, at) {
                Ok(sent) => {
                    let left = messages[at..at + sent].iter().flatten();
                    for message in left.clone() {
                        self.scene.show(message, 0, usize::MAX, None);
                    }
                    let (packets, bytes) = left.fold((0, 0), |(packets, bytes), message| {
                        let inner = message.inner_bytes(ENCAP_LEN as u32);
                        (packets + u64::from(message.count), bytes + inner)
                    });
                    book(self.counters, packets, bytes);
                    at += sent.max(1);
                    refusals = 0;
                }
                Err(error) => {
                    let Some(message) = messages[at] else { return };
                    refusals += 1;
                    match action_after(&error, message.count > 1, refusals, patient) {
                        ErrorAction::Again => continue,
                        ErrorAction::WaitAndRetry => {
                            patient = false;
                            let _ = poll::wait_writable(
                                std::os::fd::AsFd::as_fd(self.socket),
                                PATIENCE,
                            );
                            continue;
                        }
                        ErrorAction::OneByOne => self.one_by_one(message, &error),
                        ErrorAction::Drop(counter) => {
                            self.counters.add(counter, u64::from(message.count));
                            self.scene.show(message, 0, usize::MAX, Some(counter));
                        }
                    }
                    at += 1;
                    refusals = 0;
                }
            }
        }
    }

    /// Kernels before 6.13 say EINVAL for datagrams longer than the device below takes.
    fn is_too_long(&self, message: &Message, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::EMSGSIZE) => true,
            Some(libc::EINVAL) => {
                let mtu = self.path.mtu(message.key.destination);
                mtu.is_ok_and(|mtu| message.segment_len as usize + IP_UDP_LEN > usize::from(mtu))
            }
            _ => false,
        }
    }

    /// Sends each datagram of a refused message by itself. Without UDP_SEGMENT the kernel
    /// may fragment what is too long for the path.
    fn one_by_one(&mut self, message: &Message, error: &io::Error) {
        self.counters.add(Counter::SegmentFallbacks, 1);
        if self.is_too_long(message, error) {
            *self.too_long = Some(message.key.destination);
        } else if *self.segmentation == Segmentation::Kernel {
            *self.segmentation = Segmentation::Off;
            tracing::warn!(
                event = "offload_fallback", part = "send", %error,
                "the kernel refused to cut a message; datagrams are sent one by one from now on"
            );
        }
        let mut sending = self.resend.start();
        for datagram in self.scene.plan.datagrams(message) {
            if sending.is_full() {
                break;
            }
            sending.message(head_of(message, false));
            sending.piece(&self.scene.buffers.heads[datagram.head.range()]);
            sending.piece(&self.scene.buffers.packets[datagram.payload.range()]);
        }
        let (mut at, mut refusals) = (0, 0);
        while at < sending.len() {
            self.counters.add(Counter::SendCalls, 1);
            match sending.send(self.socket, at) {
                Ok(sent) => {
                    self.scene.show(message, at, sent, None);
                    let datagrams = self.scene.plan.datagrams(message).skip(at).take(sent);
                    let bytes = datagrams.map(|datagram| {
                        let len = datagram.head.len + datagram.payload.len;
                        u64::from(len).saturating_sub(ENCAP_LEN as u64)
                    });
                    book(self.counters, sent as u64, bytes.sum());
                    at += sent.max(1);
                    refusals = 0;
                }
                Err(error) => {
                    refusals += 1;
                    match action_after(&error, false, refusals, false) {
                        ErrorAction::Drop(counter) => {
                            self.counters.add(counter, 1);
                            self.scene.show(message, at, 1, Some(counter));
                            at += 1;
                            refusals = 0;
                        }
                        _ => continue,
                    }
                }
            }
        }
    }
}

/// A call sent so many packets.
#[inline]
fn book(counters: &Counters, packets: u64, bytes: u64) {
    counters.add(Counter::Sent, packets);
    counters.add(Counter::SentBytes, bytes);
    counters.batch(Call::Send, packets);
}

fn action_after(error: &io::Error, segmented: bool, refusals: u32, patient: bool) -> ErrorAction {
    match error.raw_os_error() {
        Some(libc::EINTR) => ErrorAction::Again,
        // The answer to an earlier datagram (ICMP port unreachable): this one was not tried.
        Some(libc::ECONNREFUSED) if refusals == 1 => ErrorAction::Again,
        Some(libc::EAGAIN | libc::ENOBUFS) if patient => ErrorAction::WaitAndRetry,
        Some(libc::EAGAIN | libc::ENOBUFS) => ErrorAction::Drop(Counter::OutQueueFull),
        Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO | libc::EOPNOTSUPP) if segmented => {
            ErrorAction::OneByOne
        }
        Some(libc::EMSGSIZE) => ErrorAction::Drop(Counter::OutTooBig),
        Some(libc::EPERM | libc::EACCES) => ErrorAction::Drop(Counter::OutForbidden),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EADDRNOTAVAIL) => {
            ErrorAction::Drop(Counter::OutUnreachable)
        }
        _ => ErrorAction::Drop(Counter::OutSendError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::outbound::batch::{MessageKey, Span};
    use crate::dataplane::tap::Taps;
    use crate::sys::udp::ReceiveBatch;
    use std::net::Ipv4Addr;
    use std::time::Instant;

    fn transmitter(counters: &Arc<Counters>) -> Transmitter {
        let sockets = (0..2)
            .map(|_| UdpSocket::sender(Ipv4Addr::LOCALHOST).unwrap())
            .collect();
        let path = PathMtuSocket::new(Ipv4Addr::LOCALHOST).unwrap();
        let observer = Taps::default().observer();
        Transmitter::new(
            sockets,
            path,
            Arc::clone(counters),
            Segmentation::Kernel,
            observer,
        )
    }

    fn received(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
        let mut batch = ReceiveBatch::new(32, 65_536);
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut all = Vec::new();
        while all.len() < count && Instant::now() < deadline {
            let Ok(slots) = batch.receive(socket, usize::MAX) else {
                continue;
            };
            for slot in 0..slots {
                let info = batch.datagram(slot);
                all.push(batch.buffer()[info.start..info.start + info.len].to_vec());
            }
        }
        all
    }

    #[test]
    fn every_datagram_of_a_plan_arrives_whole_and_is_counted() {
        let receiver = UdpSocket::receiver(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let destination = receiver.local_address().unwrap();
        let counters = Arc::new(Counters::default());
        let mut transmitter = transmitter(&counters);
        let heads: Vec<u8> = (0..100).collect();
        let packets: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
        let mut plan = SendPlan::new(64);
        let mut expected = Vec::new();
        for number in 0..100u32 {
            let len = [700, 700, 300][number as usize % 3];
            let head = Span {
                start: number,
                len: 1,
            };
            let payload = Span {
                start: number * 90,
                len,
            };
            let key = MessageKey {
                destination,
                bucket: (number % 2) as u16,
                ecn: 0,
            };
            plan.push(key, head, payload);
            expected.push([&heads[head.range()], &packets[payload.range()]].concat());
        }
        transmitter.flush(
            &plan,
            Buffers {
                heads: &heads,
                packets: &packets,
            },
        );
        let mut all = received(&receiver, expected.len());
        all.sort();
        expected.sort();
        assert_eq!(all, expected);
        assert_eq!(counters.get(Counter::Sent), 100);
    }

    #[test]
    fn a_refused_message_costs_itself_alone() {
        let receiver = UdpSocket::receiver(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let destination = receiver.local_address().unwrap();
        let counters = Arc::new(Counters::default());
        let mut transmitter = transmitter(&counters);
        let packets = vec![1; 70_000];
        let mut plan = SendPlan::new(64);
        // Broadcast without SO_BROADCAST is refused with EACCES.
        let forbidden = SocketAddrV4::new(Ipv4Addr::BROADCAST, 9);
        for (destination, len) in [
            (destination, 10),
            (forbidden, 10),
            (destination, 66_000),
            (destination, 20),
        ] {
            let key = MessageKey {
                destination,
                bucket: 0,
                ecn: 0,
            };
            plan.push(key, Span::default(), Span { start: 0, len });
        }
        transmitter.flush(
            &plan,
            Buffers {
                heads: &[],
                packets: &packets,
            },
        );
        assert_eq!(received(&receiver, 2), [vec![1; 10], vec![1; 20]]);
        let dropped = [
            Counter::Sent,
            Counter::OutForbidden,
            Counter::OutTooBig,
            Counter::OutUnreachable,
        ];
        let [sent, forbidden, too_big, unreachable] = dropped.map(|counter| counters.get(counter));
        assert_eq!((sent, too_big, forbidden + unreachable), (2, 1, 1));
    }
}
