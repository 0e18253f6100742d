//! ICMP echo, with the payload compared byte by byte.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::{content, failed, is_timeout};
use crate::sys::netns::Namespace;
use crate::testbed::namespace::TestbedError;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const ICMP_HEADER: usize = 8;
/// What fits into the largest IPv4 packet with a header of 20 bytes.
const MAX_PAYLOAD: usize = 65_535 - 20 - ICMP_HEADER;

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct PingRequest {
    /// Where to.
    pub destination: Ipv4Addr,
    /// Bytes after the ICMP header; up to 65507, more than the MTU is sent in fragments.
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

/// What came back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PingReport {
    /// Requests sent, or tried to.
    pub sent: u16,
    /// Replies with the payload that was sent, each in time.
    pub received: u16,
    /// Replies with another payload.
    pub corrupted: u16,
    /// Round trip times of the replies counted in `received`.
    pub rtts: Vec<Duration>,
    /// TTL of those replies on arrival: 64 less the routers on the way.
    pub ttls: Vec<u8>,
    /// Type and code of other ICMP messages that came for our requests, such as (3, 1)
    /// host unreachable or (3, 4) fragmentation needed.
    pub icmp_errors: Vec<(u8, u8)>,
    /// Last reason for which a request could not be sent.
    pub send_error: Option<String>,
}

impl PingReport {
    /// Whether each request got its reply, unchanged.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.sent > 0 && self.received == self.sent && self.corrupted == 0
    }
}

/// Sends echo requests from `namespace` and waits for the replies.
///
/// # Errors
///
/// When there can't be a raw socket (`CAP_NET_RAW`), or the payload is too long. Lost
/// requests are no error.
pub fn ping(namespace: &Namespace, request: PingRequest) -> Result<PingReport, TestbedError> {
    if request.payload_len > MAX_PAYLOAD {
        return Err(TestbedError::Request(format!(
            "a ping payload of {} bytes does not fit into an IPv4 packet: {MAX_PAYLOAD} do",
            request.payload_len
        )));
    }
    let outcome = namespace.run(|| -> io::Result<PingReport> { Pinger::open(request)?.send_all() });
    outcome
        .and_then(|inner| inner)
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
            let packet = echo_request(self.identifier, sequence, &payload);
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
            match received.map(|message| message.verdict(self.identifier, sequence, payload)) {
                Some(Verdict::Reply { ttl }) => {
                    self.report.received += 1;
                    self.report.rtts.push(rtt);
                    self.report.ttls.push(ttl);
                    return Ok(());
                }
                Some(Verdict::Corrupted) => {
                    self.report.corrupted += 1;
                    return Ok(());
                }
                Some(Verdict::Error(kind, code)) => self.report.icmp_errors.push((kind, code)),
                Some(Verdict::NotOurs) | None => {}
            }
        }
    }
}

fn echo_request(identifier: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![ECHO_REQUEST, 0, 0, 0];
    packet.extend(identifier.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend(payload);
    let checksum = checksum(&packet).to_be_bytes();
    for (to, from) in packet.iter_mut().skip(2).zip(checksum) {
        *to = from;
    }
    packet
}

/// The Internet checksum of RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// An ICMP message as a raw socket hands it over, the IPv4 header first (`raw(7)`).
struct Received<'a> {
    ttl: u8,
    kind: u8,
    code: u8,
    identifier: u16,
    sequence: u16,
    body: &'a [u8],
}

enum Verdict {
    Reply { ttl: u8 },
    Corrupted,
    Error(u8, u8),
    NotOurs,
}

impl<'a> Received<'a> {
    fn parse(packet: &'a [u8]) -> Option<Self> {
        let ttl = *packet.get(8)?;
        let header_len = usize::from(packet.first()? & 0x0f) * 4;
        let (header, body) = packet.get(header_len..)?.split_at_checked(ICMP_HEADER)?;
        let &[kind, code, _, _, id_high, id_low, seq_high, seq_low] = header else {
            return None;
        };
        Some(Self {
            ttl,
            kind,
            code,
            identifier: u16::from_be_bytes([id_high, id_low]),
            sequence: u16::from_be_bytes([seq_high, seq_low]),
            body,
        })
    }

    fn verdict(&self, identifier: u16, sequence: u16, payload: &[u8]) -> Verdict {
        let ours = (self.identifier, self.sequence) == (identifier, sequence);
        match self.kind {
            ECHO_REPLY if ours && self.body == payload => Verdict::Reply { ttl: self.ttl },
            ECHO_REPLY if ours => Verdict::Corrupted,
            ECHO_REPLY | ECHO_REQUEST => Verdict::NotOurs,
            // An error carries the packet it is about, ours being an echo request.
            _ => match Self::parse(self.body) {
                Some(about) if about.kind == ECHO_REQUEST && about.identifier == identifier => {
                    Verdict::Error(self.kind, self.code)
                }
                _ => Verdict::NotOurs,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_the_wire(ttl: u8, icmp: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, ttl, 1];
        packet.resize(20, 0);
        packet.extend(icmp);
        packet
    }

    fn reply(payload: &[u8]) -> Vec<u8> {
        let mut icmp = echo_request(7, 3, payload);
        icmp[0] = ECHO_REPLY;
        on_the_wire(62, &icmp)
    }

    fn verdict(packet: &[u8]) -> Option<Verdict> {
        Received::parse(packet).map(|message| message.verdict(7, 3, b"hello"))
    }

    #[test]
    fn the_checksum_of_a_request_verifies() {
        for payload in [&b""[..], b"odd", b"even"] {
            assert_eq!(checksum(&echo_request(1, 2, payload)), 0);
        }
    }

    #[test]
    fn replies_are_compared_whole() {
        let good = verdict(&reply(b"hello"));
        assert!(matches!(good, Some(Verdict::Reply { ttl: 62 })));
        for other in [&b"hellO"[..], b"hell", b"hello "] {
            assert!(matches!(verdict(&reply(other)), Some(Verdict::Corrupted)));
        }
    }

    #[test]
    fn only_errors_about_our_requests_count() {
        let error = |identifier| {
            let mut icmp = vec![3, 1, 0, 0, 0, 0, 0, 0];
            icmp.extend(on_the_wire(63, &echo_request(identifier, 3, b"hello")));
            on_the_wire(64, &icmp)
        };
        assert!(matches!(verdict(&error(7)), Some(Verdict::Error(3, 1))));
        assert!(matches!(verdict(&error(8)), Some(Verdict::NotOurs)));
    }

    #[test]
    fn short_packets_are_no_messages() {
        let whole = reply(b"");
        for length in 0..whole.len() {
            assert!(Received::parse(&whole[..length]).is_none(), "{length}");
        }
    }
}
