//! Sends a plan with one sendmmsg per source port, and handles the errors of the kernel.

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

/// Messages per system call.
const MESSAGES: usize = 64;
/// Outer IPv4 and UDP header.
const IP_UDP_LEN: usize = 28;
/// How long a worker waits for room in a full socket, once per call. If it waited longer, the
/// TUN queue would overflow, which only the kernel counts.
const FULL_SOCKET_TIMEOUT: Duration = Duration::from_millis(1);

/// Sends plans through a pool of sockets. Each socket is a source port.
pub(crate) struct Transmitter {
    sockets: Arc<[UdpSocket]>,
    path_mtu: PathMtuSocket,
    send: SendBatch,
    /// Sends the datagrams of a refused message one by one.
    resend: SendBatch,
    counters: Arc<Counters>,
    segmentation: Segmentation,
    /// The latest destination whose path MTU was exceeded.
    oversized: Option<SocketAddrV4>,
    observer: Observer,
    ports: Vec<u16>,
}

/// Whether the kernel cuts messages into datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Segmentation {
    /// Yes, by `UDP_SEGMENT`.
    Kernel,
    /// No: it does not support it, has refused at run time, or it is turned off.
    Off,
}

/// The buffers that the spans of a plan refer to.
#[derive(Clone, Copy)]
pub(super) struct Buffers<'a> {
    /// Arena of header blocks.
    pub(super) heads: &'a [u8],
    pub(super) packets: &'a [u8],
}

/// What to do with a message that the kernel refused.
enum ErrorAction {
    Retry,
    WaitAndRetry,
    OneByOne,
    Drop(Counter),
}

impl Transmitter {
    /// Sends through these sockets, 1 to 64 of them. `path_mtu` has the same source address.
    pub(crate) fn new(
        sockets: Arc<[UdpSocket]>,
        path_mtu: PathMtuSocket,
        counters: Arc<Counters>,
        segmentation: Segmentation,
        observer: Observer,
    ) -> Self {
        let port = |socket: &UdpSocket| socket.local_address().map_or(0, |own| own.port());
        Self {
            ports: sockets.iter().map(port).collect(),
            sockets,
            path_mtu,
            send: SendBatch::new(MESSAGES),
            resend: SendBatch::new(MESSAGES * 2),
            counters,
            segmentation,
            oversized: None,
            observer,
        }
    }

    pub(super) const fn observer(&self) -> &Observer {
        &self.observer
    }

    pub(super) const fn observer_mut(&mut self) -> &mut Observer {
        &mut self.observer
    }

    /// A destination whose path MTU was exceeded since the last call.
    pub(super) const fn take_oversized(&mut self) -> Option<SocketAddrV4> {
        self.oversized.take()
    }

    /// The largest IP packet in bytes that the path to this destination takes.
    pub(super) fn path_mtu(&self, destination: SocketAddrV4) -> io::Result<u16> {
        self.path_mtu.get(destination)
    }

    /// Number of source ports.
    pub(super) fn buckets(&self) -> usize {
        self.sockets.len()
    }

    /// Whether messages may have more than one datagram.
    pub(super) const fn segmentation(&self) -> Segmentation {
        self.segmentation
    }

    /// Sends the whole plan, and counts what could not be sent. Waits at most
    /// [`FULL_SOCKET_TIMEOUT`] per call.
    pub(super) fn flush(&mut self, plan: &SendPlan, buffers: Buffers<'_>) {
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
                path_mtu,
                send,
                resend,
                counters,
                segmentation,
                oversized,
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
                path_mtu,
                resend,
                counters,
                segmentation,
                oversized,
                context: SendContext {
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
        // Not for a single datagram: kernels up to early 2025 refuse UDP_SEGMENT if the path
        // MTU is smaller than the segment.
        segment: if segmented {
            u16::try_from(message.segment_len).ok()
        } else {
            None
        },
        ecn: message.key.ecn,
    }
}

/// One sendmmsg and its retries.
struct Attempt<'a> {
    socket: &'a UdpSocket,
    path_mtu: &'a PathMtuSocket,
    resend: &'a mut SendBatch,
    counters: &'a Counters,
    segmentation: &'a mut Segmentation,
    oversized: &'a mut Option<SocketAddrV4>,
    context: SendContext<'a>,
}

/// The plan that is sent, and its capture.
#[derive(Clone, Copy)]
struct SendContext<'a> {
    plan: &'a SendPlan,
    buffers: Buffers<'a>,
    observer: &'a Observer,
    port: u16,
}

impl SendContext<'_> {
    /// Shows `count` datagrams of a message to captures, from number `from` on.
    #[inline]
    fn report(&self, message: &Message, from: usize, count: usize, dropped: Option<Counter>) {
        if self.observer.is_active() {
            for datagram in self.plan.datagrams(message).skip(from).take(count) {
                self.report_one(message, datagram, dropped);
            }
        }
    }

    #[cold]
    fn report_one(&self, message: &Message, datagram: &Datagram, dropped: Option<Counter>) {
        self.observer.report(&Observation {
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
        let mut may_wait = true;
        while at < sending.len() {
            self.counters.add(Counter::SendCalls, 1);
            match sending.send(self.socket, at) {
                Ok(sent) => {
                    let sent_messages = messages[at..at + sent].iter().flatten();
                    for message in sent_messages.clone() {
                        self.context.report(message, 0, usize::MAX, None);
                    }
                    let (packets, bytes) =
                        sent_messages.fold((0, 0), |(packets, bytes), message| {
                            let inner = message.inner_bytes(ENCAP_LEN as u32);
                            (packets + u64::from(message.count), bytes + inner)
                        });
                    count_sent(self.counters, packets, bytes);
                    at += sent.max(1);
                    refusals = 0;
                }
                Err(error) => {
                    let Some(message) = messages[at] else { return };
                    refusals += 1;
                    match action_after(&error, message.count > 1, refusals, may_wait) {
                        ErrorAction::Retry => continue,
                        ErrorAction::WaitAndRetry => {
                            may_wait = false;
                            let _ = poll::wait_writable(
                                std::os::fd::AsFd::as_fd(self.socket),
                                FULL_SOCKET_TIMEOUT,
                            );
                            continue;
                        }
                        ErrorAction::OneByOne => self.send_one_by_one(message, &error),
                        ErrorAction::Drop(counter) => {
                            self.counters.add(counter, u64::from(message.count));
                            self.context.report(message, 0, usize::MAX, Some(counter));
                        }
                    }
                    at += 1;
                    refusals = 0;
                }
            }
        }
    }

    /// Kernels before 6.13 report EINVAL for datagrams that exceed the MTU of the path.
    fn is_oversized(&self, message: &Message, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::EMSGSIZE) => true,
            Some(libc::EINVAL) => {
                let mtu = self.path_mtu.get(message.key.destination);
                mtu.is_ok_and(|mtu| message.segment_len as usize + IP_UDP_LEN > usize::from(mtu))
            }
            _ => false,
        }
    }

    /// Sends each datagram of a refused message by itself. Without UDP_SEGMENT the kernel may
    /// fragment datagrams that exceed the path MTU.
    fn send_one_by_one(&mut self, message: &Message, error: &io::Error) {
        self.counters.add(Counter::SegmentFallbacks, 1);
        if self.is_oversized(message, error) {
            *self.oversized = Some(message.key.destination);
        } else if *self.segmentation == Segmentation::Kernel {
            *self.segmentation = Segmentation::Off;
            tracing::warn!(
                event = "offload_fallback", part = "send", %error,
                "the kernel refused to cut a message; datagrams are sent one by one from now on"
            );
        }
        let mut sending = self.resend.start();
        for datagram in self.context.plan.datagrams(message) {
            if sending.is_full() {
                break;
            }
            sending.message(head_of(message, false));
            sending.piece(&self.context.buffers.heads[datagram.head.range()]);
            sending.piece(&self.context.buffers.packets[datagram.payload.range()]);
        }
        let (mut at, mut refusals) = (0, 0);
        while at < sending.len() {
            self.counters.add(Counter::SendCalls, 1);
            match sending.send(self.socket, at) {
                Ok(sent) => {
                    self.context.report(message, at, sent, None);
                    let datagrams = self.context.plan.datagrams(message).skip(at).take(sent);
                    let bytes = datagrams.map(|datagram| {
                        let len = datagram.head.len + datagram.payload.len;
                        u64::from(len).saturating_sub(ENCAP_LEN as u64)
                    });
                    count_sent(self.counters, sent as u64, bytes.sum());
                    at += sent.max(1);
                    refusals = 0;
                }
                Err(error) => {
                    refusals += 1;
                    match action_after(&error, false, refusals, false) {
                        ErrorAction::Drop(counter) => {
                            self.counters.add(counter, 1);
                            self.context.report(message, at, 1, Some(counter));
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

/// Counts a call that sent this many packets.
#[inline]
fn count_sent(counters: &Counters, packets: u64, bytes: u64) {
    counters.add(Counter::Sent, packets);
    counters.add(Counter::SentBytes, bytes);
    counters.batch(Call::Send, packets);
}

fn action_after(error: &io::Error, segmented: bool, refusals: u32, may_wait: bool) -> ErrorAction {
    match error.raw_os_error() {
        Some(libc::EINTR) => ErrorAction::Retry,
        // An ICMP port unreachable about an earlier datagram: this one was not tried.
        Some(libc::ECONNREFUSED) if refusals == 1 => ErrorAction::Retry,
        Some(libc::EAGAIN | libc::ENOBUFS) if may_wait => ErrorAction::WaitAndRetry,
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
mod tests;
