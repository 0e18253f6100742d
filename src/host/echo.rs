//! Echo requests over the overlay, sent one at a time on a raw ICMP socket.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::wire::icmp::echo::{self, Received, Verdict};

/// IPv4 and ICMP headers, in bytes.
pub(crate) const HEADERS: usize = 20 + echo::HEADER_LEN;
/// Payload of a small request, in bytes, as ping's.
pub(crate) const SMALL: usize = 56;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It came back whole, after so long.
    Reply(Duration),
    /// It came back with another payload.
    Corrupted,
    /// This address answered with an ICMP error of this type and code.
    Error(Ipv4Addr, u8, u8),
    /// It did not leave this host: the error's number, 0 where it has none.
    NotSent(i32),
    /// Nothing came.
    Nothing,
}

/// A raw socket for ICMP. Needs `CAP_NET_RAW`.
#[derive(Debug)]
pub(crate) struct EchoSocket {
    socket: Socket,
    identifier: u16,
    sequence: u16,
    buffer: Vec<u8>,
}

impl EchoSocket {
    /// A socket whose requests leave with the address `own`.
    ///
    /// # Errors
    /// The kernel's, most often for want of `CAP_NET_RAW` or of the address.
    pub(crate) fn open(own: Ipv4Addr) -> io::Result<Self> {
        Ok(Self {
            socket: raw(own)?,
            identifier: rand::random(),
            sequence: 0,
            buffer: vec![0; usize::from(u16::MAX)],
        })
    }

    /// Sends one request of `length` bytes, IPv4 header included, and waits for its answer.
    ///
    /// # Errors
    /// The kernel's, where a timeout cannot be set.
    pub(crate) fn ask(
        &mut self,
        to: Ipv4Addr,
        length: usize,
        patience: Duration,
    ) -> io::Result<Answer> {
        self.sequence = self.sequence.wrapping_add(1);
        let payload: Vec<u8> = (0..length.saturating_sub(HEADERS))
            .map(|at| (at % 251) as u8)
            .collect();
        let start = Instant::now();
        let request = echo::request(self.identifier, self.sequence, &payload);
        if let Err(error) = self
            .socket
            .send_to(&request, &SocketAddrV4::new(to, 0).into())
        {
            return Ok(Answer::NotSent(error.raw_os_error().unwrap_or(0)));
        }
        loop {
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(Answer::Nothing);
            }
            self.socket.set_read_timeout(Some(left))?;
            let length = match (&self.socket).read(&mut self.buffer) {
                Ok(length) => length,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        return Ok(Answer::Nothing);
                    }
                    io::ErrorKind::Interrupted => continue,
                    _ => return Ok(Answer::NotSent(error.raw_os_error().unwrap_or(0))),
                },
            };
            let Some(message) = self.buffer.get(..length).and_then(Received::parse) else {
                continue;
            };
            match message.verdict(self.identifier, self.sequence, &payload) {
                Verdict::Reply => return Ok(Answer::Reply(start.elapsed())),
                Verdict::Corrupted => return Ok(Answer::Corrupted),
                Verdict::Error(kind, code) => {
                    return Ok(Answer::Error(message.source.into(), kind, code));
                }
                Verdict::NotOurs => {}
            }
        }
    }
}

/// A raw socket for ICMP, bound to an address of this host.
///
/// # Errors
/// The kernel's.
pub(crate) fn raw(own: Ipv4Addr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.bind(&SocketAddrV4::new(own, 0).into())?;
    Ok(socket)
}
