//! ICMP echo, with the payload compared byte by byte.

use std::io;
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use super::failed;
use crate::host::echo::{EchoResult, EchoSocket, HEADERS};
use crate::sys::netns::Namespace;
use crate::testbed::namespace::TestbedError;

/// What fits into the largest IPv4 packet.
const MAX_PAYLOAD: usize = 65_535 - HEADERS;

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
        .try_run(|| exchange(request))
        .map_err(|source| failed(format!("ping {}", request.destination), source))
}

fn exchange(request: PingRequest) -> io::Result<PingReport> {
    let mut socket = EchoSocket::open(Ipv4Addr::UNSPECIFIED)?;
    let length = HEADERS + request.payload_len;
    let mut report = PingReport::default();
    for sequence in 0..request.count {
        let start = Instant::now();
        report.sent += 1;
        match socket.ping(request.destination, length, request.timeout)? {
            EchoResult::Reply { round_trip, ttl } => {
                report.received += 1;
                report.rtts.push(round_trip);
                report.ttls.push(ttl);
            }
            EchoResult::Corrupted => report.corrupted += 1,
            EchoResult::Error { kind, code, .. } => report.icmp_errors.push((kind, code)),
            EchoResult::NotSent(number) => {
                let error = io::Error::from_raw_os_error(number);
                report.send_error = Some(error.to_string());
            }
            EchoResult::TimedOut => {}
        }
        if sequence + 1 < request.count {
            thread::sleep(request.interval.saturating_sub(start.elapsed()));
        }
    }
    Ok(report)
}
