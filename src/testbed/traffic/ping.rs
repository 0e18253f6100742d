//! ICMP echo, with the payload compared byte by byte.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::{content, failed, is_timeout};
use crate::sys::netns::Namespace;
use crate::testbed::namespace::TestbedError;
use crate::wire::icmp::echo::{self, Received, Verdict};

/// What fits into the largest IPv4 packet with a header of 20 bytes.
const MAX_PAYLOAD: usize = 65_535 - 20 - echo::HEADER_LEN;

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct PingRequest {
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Bytes after the ICMP header, up to 65507; fragmented if larger than the MTU.
    pub payload_len: usize,
    /// Number of echo requests.
    pub count: u16,
    /// Time from one request to the next.
    pub interval: Duration,
    /// How long to wait for each reply.
    pub timeout: Duration,
}

impl PingRequest {
    /// Three requests of 56 bytes, 50 ms apart, waiting a second for each.
    #[must_use]
    pub fn new(destination: Ipv4Addr) -> Self {
        Self {
            destination,
            payload_len: 56,
            count: 3,
            interval: Duration::from_millis(50),
            timeout: Duration::from_secs(1),
        }
    }
}

/// Result of a [`ping`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PingReport {
    /// Requests sent, including those that the kernel refused.
    pub sent: u16,
    /// Replies in time with the payload that was sent.
    pub received: u16,
    /// Replies with another payload.
    pub corrupted: u16,
    /// Round trip times of the replies counted in `received`.
    pub rtts: Vec<Duration>,
    /// TTL of those replies on arrival: 64 less the number of hops.
    pub ttls: Vec<u8>,
    /// Type and code of ICMP errors about our requests, such as (3, 1) host unreachable or
    /// (3, 4) fragmentation needed.
    pub icmp_errors: Vec<(u8, u8)>,
    /// Why the last request that could not be sent was refused.
    pub send_error: Option<String>,
}

impl PingReport {
    /// Whether every request got its reply, unchanged.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.sent > 0 && self.received == self.sent && self.corrupted == 0
    }
}

/// Sends echo requests from `namespace` and waits for the replies.
///
/// # Errors
///
/// If a raw socket cannot be opened (`CAP_NET_RAW`), or the payload is too long. Lost requests
/// are not an error.
pub fn ping(namespace: &Namespace, request: PingRequest) -> Result<PingReport, TestbedError> {
    if request.payload_len > MAX_PAYLOAD {
        return Err(TestbedError::Request(format!(
            "a ping payload of {} bytes does not fit into an IPv4 packet: {MAX_PAYLOAD} do",
            request.payload_len
        )));
    }
    namespace
        .try_run(|| Pinger::open(request)?.send_all())
        .map_err(|source| failed(format!("ping {}", request.destination), source))
}

struct Pinger {
    socket: Socket,
    request: PingRequest,
    identifier: u16,
    buffer: Vec<u8>,
    report: PingReport,
}

impl Pinger {
    fn open(request: PingRequest) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?,
            request,
            identifier: rand::random(),
            buffer: vec![0; usize::from(u16::MAX)],
            report: PingReport::default(),
        })
    }

    fn send_all(mut self) -> io::Result<PingReport> {
        let destination = SocketAddrV4::new(self.request.destination, 0).into();
        for sequence in 0..self.request.count {
            let payload = content::bytes(u64::from(sequence), self.request.payload_len);
            let packet = echo::request(self.identifier, sequence, &payload);
            let start = Instant::now();
            self.report.sent += 1;
            match self.socket.send_to(&packet, &destination) {
                Ok(_) => self.await_reply(sequence, &payload, start)?,
                Err(error) => self.report.send_error = Some(error.to_string()),
            }
            if sequence + 1 < self.request.count {
                thread::sleep(self.request.interval.saturating_sub(start.elapsed()));
            }
        }
        Ok(self.report)
    }

    fn await_reply(&mut self, sequence: u16, payload: &[u8], start: Instant) -> io::Result<()> {
        loop {
            let left = self.request.timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            self.socket.set_read_timeout(Some(left))?;
            let length = match self.socket.read(&mut self.buffer) {
                Ok(length) => length,
                Err(error) if is_timeout(&error) => continue,
                Err(error) => return Err(error),
            };
            let rtt = start.elapsed();
            let received = self.buffer.get(..length).and_then(Received::parse);
            let Some(message) = received else {
                continue;
            };
            match message.verdict(self.identifier, sequence, payload) {
                Verdict::Reply => {
                    self.report.received += 1;
                    self.report.rtts.push(rtt);
                    self.report.ttls.push(message.ttl);
                    return Ok(());
                }
                Verdict::Corrupted => {
                    self.report.corrupted += 1;
                    return Ok(());
                }
                Verdict::Error(kind, code) => self.report.icmp_errors.push((kind, code)),
                Verdict::NotOurs => {}
            }
        }
    }
}
