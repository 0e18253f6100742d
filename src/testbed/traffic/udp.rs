//! UDP round trips, to measure latency.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{content, failed, is_timeout};
use crate::sys::netns::Namespace;
use crate::testbed::namespace::TestbedError;

/// Time until an echo server notices that it should stop.
const POLL_TIMEOUT: Duration = Duration::from_millis(50);

/// A server that returns each datagram to its sender; stops on drop.
#[derive(Debug)]
pub struct UdpEcho {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            // A worker that panicked has stopped as well.
            let _ = worker.join();
        }
    }
}

/// Starts an echo server in `namespace` on `address`, with a port the kernel chooses.
///
/// # Errors
///
/// If the address cannot be bound.
pub fn udp_echo(namespace: &Namespace, address: Ipv4Addr) -> Result<UdpEcho, TestbedError> {
    let start = || -> io::Result<UdpEcho> {
        let socket = namespace.try_run(|| UdpSocket::bind(SocketAddrV4::new(address, 0)))?;
        socket.set_read_timeout(Some(POLL_TIMEOUT))?;
        let stop = Arc::new(AtomicBool::new(false));
        let address = socket.local_addr()?;
        let worker = {
            let stop = Arc::clone(&stop);
            thread::Builder::new()
                .name("udp-echo".into())
                .spawn(move || echo(&socket, &stop))?
        };
        Ok(UdpEcho {
            address,
            stop,
            worker: Some(worker),
        })
    };
    start().map_err(|source| failed(format!("serve UDP echo on {address}"), source))
}

fn echo(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    while !stop.load(Ordering::Relaxed) {
        // Errors are timeouts, and ICMP errors about earlier replies.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

/// What to send to an echo server.
#[derive(Debug, Clone, Copy)]
pub struct PingPongRequest {
    /// Address of the server.
    pub destination: SocketAddr,
    /// Bytes in a datagram.
    pub payload_len: usize,
    /// Number of datagrams, sent one after the other.
    pub count: usize,
    /// How long to wait for each reply.
    pub timeout: Duration,
}

/// Result of a [`udp_ping_pong`].
#[derive(Debug, Clone, Default)]
pub struct PingPongReport {
    /// Datagrams sent.
    pub sent: usize,
    /// Datagrams that returned in time and unchanged.
    pub received: usize,
    /// Their round trip times, shortest first.
    pub round_trips: Vec<Duration>,
}

impl PingPongReport {
    /// The round trip time that `share` of the datagrams (0.0 to 1.0) did not exceed, if any
    /// returned.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a list that fits in memory"
    )]
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        let last = self.round_trips.len().checked_sub(1)?;
        let index = (last as f64 * share.clamp(0.0, 1.0)).round() as usize;
        self.round_trips.get(index).copied()
    }
}

/// Sends datagrams from `namespace` to an echo server, each after the reply to the one before,
/// and measures the round trips.
///
/// # Errors
///
/// If a socket cannot be created. Lost datagrams are not an error.
pub fn udp_ping_pong(
    namespace: &Namespace,
    request: PingPongRequest,
) -> Result<PingPongReport, TestbedError> {
    let result = namespace.try_run(|| {
        let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(request.destination)?;
        let mut report = PingPongReport::default();
        for sequence in 0..request.count {
            report.sent += 1;
            if let Some(rtt) = round_trip(&socket, sequence as u64, request)? {
                report.received += 1;
                report.round_trips.push(rtt);
            }
        }
        report.round_trips.sort_unstable();
        Ok(report)
    });
    result.map_err(|source| failed(format!("send UDP to {}", request.destination), source))
}

fn round_trip(
    socket: &UdpSocket,
    sequence: u64,
    request: PingPongRequest,
) -> io::Result<Option<Duration>> {
    let payload = content::bytes(sequence, request.payload_len);
    let mut reply = vec![0; request.payload_len + 1];
    let start = Instant::now();
    match socket.send(&payload) {
        Ok(_) => {}
        // An ICMP error about an earlier datagram, or no buffer: this one is lost.
        Err(error) if is_loss(&error) => return Ok(None),
        Err(error) => return Err(error),
    }
    loop {
        let left = request.timeout.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut reply) {
            Ok(length) if reply[..length] == payload => return Ok(Some(start.elapsed())),
            // A late reply to an earlier datagram.
            Ok(_) => {}
            Err(error) if is_timeout(&error) || is_loss(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_loss(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENOBUFS)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_from_the_list() {
        let report = PingPongReport {
            round_trips: (1..=101).map(Duration::from_micros).collect(),
            ..PingPongReport::default()
        };
        let micros = |share| report.percentile(share).map(|rtt| rtt.as_micros());
        assert_eq!(micros(0.0), Some(1));
        assert_eq!(micros(0.5), Some(51));
        assert_eq!(micros(0.99), Some(100));
        assert_eq!(micros(7.0), Some(101));
        assert_eq!(PingPongReport::default().percentile(0.5), None);
    }
}
