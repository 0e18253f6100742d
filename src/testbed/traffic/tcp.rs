//! A TCP transfer whose content is compared at both ends.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::content::Content;
use super::{failed, is_timeout};
use crate::sys::netns::Namespace;
use crate::testbed::namespace::TestbedError;

/// SHA-256 of the bytes sent or received.
type Sha256Digest = [u8; 32];

const CHUNK: usize = 256 * 1024;

/// What to transfer.
#[derive(Debug, Clone, Copy)]
pub struct TransferRequest {
    /// An address of the receiving namespace.
    pub address: Ipv4Addr,
    /// Number of bytes.
    pub bytes: u64,
    /// Seed of the pseudo-random content.
    pub seed: u64,
    /// Whether both ends compute a digest. That costs as much as the transfer itself, so it is
    /// not for throughput measurements. Without it the content repeats.
    pub verify: bool,
    /// Time limit.
    pub deadline: Duration,
}

impl TransferRequest {
    /// A verified transfer with a time limit of 30 seconds.
    #[must_use]
    pub fn new(address: Ipv4Addr, bytes: u64) -> Self {
        Self {
            address,
            bytes,
            seed: 0,
            verify: true,
            deadline: Duration::from_secs(30),
        }
    }
}

/// Result of a [`tcp_transfer`].
#[derive(Debug, Clone, PartialEq)]
pub struct TransferReport {
    /// Bytes that arrived.
    pub bytes: u64,
    /// Seconds from before the connection until the last byte arrived.
    pub seconds: f64,
    digest_sent: Option<Sha256Digest>,
    digest_received: Option<Sha256Digest>,
}

impl TransferReport {
    /// Whether the digests were computed and match.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.digest_sent.is_some() && self.digest_sent == self.digest_received
    }

    /// Payload bits per second.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "a rate needs no more than 53 bits"
    )]
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.seconds
    }
}

/// Sends pseudo-random bytes over TCP from one namespace to another, and calls `progress`
/// from time to time with the number of bytes that have arrived.
///
/// # Errors
///
/// If the connection fails, and [`TestbedError::Deadline`] if the transfer is not finished in
/// time.
pub fn tcp_transfer(
    from: &Namespace,
    to: &Namespace,
    request: TransferRequest,
    progress: impl FnMut(u64) + Send,
) -> Result<TransferReport, TestbedError> {
    let clock = Clock::start(request.deadline);
    let explain = |error: io::Error| {
        if is_timeout(&error) {
            clock.timed_out(request)
        } else {
            failed(format!("send TCP to {}", request.address), error)
        }
    };
    let (sender, receiver) = connect(from, to, request.address, clock).map_err(explain)?;
    let (sent, received) = thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(receiver, request, clock, progress));
        let sent = send(sender, request, clock);
        let received = receiving
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the receiving thread died")));
        (sent, received)
    });
    // The receiver's error first: once it stops, the sender only sees a reset.
    let received = received.map_err(explain)?;
    Ok(TransferReport {
        bytes: received.bytes,
        seconds: received.at.duration_since(clock.start).as_secs_f64(),
        digest_sent: sent.map_err(explain)?,
        digest_received: received.digest,
    })
}

#[derive(Clone, Copy)]
struct Clock {
    start: Instant,
    limit: Duration,
}

impl Clock {
    fn start(limit: Duration) -> Self {
        let start = Instant::now();
        Self { start, limit }
    }

    /// The remaining time, never zero, which sockets reject.
    fn left(self) -> io::Result<Duration> {
        self.limit
            .checked_sub(self.start.elapsed())
            .filter(|left| !left.is_zero())
            .ok_or_else(|| io::ErrorKind::TimedOut.into())
    }

    fn timed_out(self, request: TransferRequest) -> TestbedError {
        TestbedError::Deadline {
            what: format!(
                "a transfer of {} bytes to {}",
                request.bytes, request.address
            ),
            after: self.limit,
        }
    }
}

fn connect(
    from: &Namespace,
    to: &Namespace,
    address: Ipv4Addr,
    clock: Clock,
) -> io::Result<(TcpStream, TcpStream)> {
    let listener = to.try_run(|| TcpListener::bind(SocketAddrV4::new(address, 0)))?;
    let destination = listener.local_addr()?;
    let left = clock.left()?;
    let sender = from.try_run(|| TcpStream::connect_timeout(&destination, left))?;
    // The sender's side of the handshake is complete, but its last segment may be in flight.
    let listener = socket2::Socket::from(listener);
    listener.set_read_timeout(Some(clock.left()?))?;
    let (receiver, _) = listener.accept()?;
    Ok((sender, receiver.into()))
}

fn send(
    mut stream: TcpStream,
    request: TransferRequest,
    clock: Clock,
) -> io::Result<Option<Sha256Digest>> {
    let mut content = Content::new(request.seed);
    let mut chunk = vec![0; CHUNK];
    content.fill(&mut chunk);
    let mut hasher = request.verify.then(Sha256::new);
    let mut left = request.bytes;
    while left > 0 {
        let length = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        let piece = &mut chunk[..length];
        if let Some(hasher) = &mut hasher {
            content.fill(piece);
            hasher.update(&*piece);
        }
        stream.set_write_timeout(Some(clock.left()?))?;
        stream.write_all(piece)?;
        left -= length as u64;
    }
    Ok(hasher.map(|hasher| hasher.finalize().into()))
}

struct Received {
    bytes: u64,
    at: Instant,
    digest: Option<Sha256Digest>,
}

fn receive(
    mut stream: TcpStream,
    request: TransferRequest,
    clock: Clock,
    mut progress: impl FnMut(u64),
) -> io::Result<Received> {
    let mut chunk = vec![0; CHUNK];
    let mut hasher = request.verify.then(Sha256::new);
    let mut bytes = 0;
    loop {
        stream.set_read_timeout(Some(clock.left()?))?;
        let length = match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if let Some(hasher) = &mut hasher {
            hasher.update(&chunk[..length]);
        }
        bytes += length as u64;
        progress(bytes);
    }
    Ok(Received {
        bytes,
        at: Instant::now(),
        digest: hasher.map(|hasher| hasher.finalize().into()),
    })
}
