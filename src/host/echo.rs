//! Echo requests, sent one at a time on a raw ICMP socket.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::wire::icmp::echo::{self, Received, Relation};

/// IPv4 and ICMP headers, in bytes.
pub(crate) const HEADERS: usize = 20 + echo::HEADER_LEN;
/// Payload of a small request in bytes, the default of ping.
pub(crate) const SMALL: usize = 56;

/// The result of an echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EchoResult {
    Reply {
        round_trip: Duration,
        ttl: u8,
    },
    /// A reply with another payload.
    Corrupted,
    /// An ICMP error about the request.
    Error {
        from: Ipv4Addr,
        kind: u8,
        code: u8,
    },
    /// The kernel refused to send it, with this error number or 0.
    NotSent(i32),
    TimedOut,
}

/// A raw ICMP socket. Needs `CAP_NET_RAW`.
#[derive(Debug)]
pub(crate) struct EchoSocket {
    socket: Socket,
    identifier: u16,
    sequence: u16,
    buffer: Vec<u8>,
}

impl EchoSocket {
    /// Opens a socket whose requests have the source address `own`, if specified.
    pub(crate) fn open(own: Ipv4Addr) -> io::Result<Self> {
        Ok(Self {
            socket: raw(own)?,
            identifier: rand::random(),
            sequence: 0,
            buffer: vec![0; usize::from(u16::MAX)],
        })
    }

    /// Sends one request of `length` bytes, including the IPv4 header, and waits for its reply.
    pub(crate) fn ping(
        &mut self,
        to: Ipv4Addr,
        length: usize,
        timeout: Duration,
    ) -> io::Result<EchoResult> {
        self.sequence = self.sequence.wrapping_add(1);
        let payload: Vec<u8> = (0..length.saturating_sub(HEADERS))
            .map(|at| (at % 251) as u8)
            .collect();
        let start = Instant::now();
        let request = echo::request(self.identifier, self.sequence, &payload);
        let not_sent = |error: io::Error| EchoResult::NotSent(error.raw_os_error().unwrap_or(0));
        if let Err(error) = self
            .socket
            .send_to(&request, &SocketAddrV4::new(to, 0).into())
        {
            return Ok(not_sent(error));
        }
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(EchoResult::TimedOut);
            }
            self.socket.set_read_timeout(Some(left))?;
            let length = match (&self.socket).read(&mut self.buffer) {
                Ok(length) => length,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        return Ok(EchoResult::TimedOut);
                    }
                    io::ErrorKind::Interrupted => continue,
                    _ => return Ok(not_sent(error)),
                },
            };
            let Some(message) = self.buffer.get(..length).and_then(Received::parse) else {
                continue;
            };
            match message.relation(self.identifier, self.sequence, &payload) {
                Relation::Reply => {
                    return Ok(EchoResult::Reply {
                        round_trip: start.elapsed(),
                        ttl: message.ttl,
                    });
                }
                Relation::Corrupted => return Ok(EchoResult::Corrupted),
                Relation::Error(kind, code) => {
                    return Ok(EchoResult::Error {
                        from: message.source.into(),
                        kind,
                        code,
                    });
                }
                Relation::Unrelated => {}
            }
        }
    }
}

/// A raw ICMP socket, bound to an address of this host.
pub(crate) fn raw(own: Ipv4Addr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.bind(&SocketAddrV4::new(own, 0).into())?;
    Ok(socket)
}
