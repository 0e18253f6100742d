//! UDP datagrams at the sender's full rate, to measure packets per second.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::failed;
use super::window::WARM_UP;
use crate::sys::netns::Namespace;
use crate::sys::poll;
use crate::sys::udp::{MessageHead, ReceiveBatch, SendBatch, UdpSocket};
use crate::testbed::namespace::TestbedError;

/// Datagrams per system call, at both ends.
const BATCH: usize = 64;
/// Time until both ends notice the end of the measurement.
const POLL_TIMEOUT: Duration = Duration::from_millis(20);

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct BlastRequest {
    /// An address of the receiving namespace.
    pub address: Ipv4Addr,
    /// Bytes in a datagram, up to 9000.
    pub payload_len: usize,
    /// How long to measure.
    pub duration: Duration,
}

/// Result of a [`udp_blast`].
#[derive(Debug, Clone, Copy)]
pub struct BlastReport {
    /// Datagrams that the sending socket accepted.
    pub sent: u64,
    /// Datagrams that arrived.
    pub delivered: u64,
    /// Time of the measurement.
    pub elapsed: Duration,
}

impl BlastReport {
    /// Datagrams delivered per second.
    #[must_use]
    pub fn delivered_per_second(&self) -> f64 {
        self.delivered as f64 / self.elapsed.as_secs_f64()
    }
}

/// Sends datagrams of one flow at full rate, and counts them at both ends after a warm-up.
///
/// # Errors
/// If a socket cannot be created.
pub fn udp_blast(
    from: &Namespace,
    to: &Namespace,
    request: BlastRequest,
) -> Result<BlastReport, TestbedError> {
    let explain = |error| failed(format!("send UDP to {}", request.address), error);
    let receiver = to
        .try_run(|| UdpSocket::receiver(SocketAddrV4::new(request.address, 0)))
        .map_err(explain)?;
    let destination = receiver.local_address().map_err(explain)?;
    let sender = from
        .try_run(|| UdpSocket::sender(Ipv4Addr::UNSPECIFIED))
        .map_err(explain)?;
    let (sent, delivered) = (AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        scope.spawn(|| receive(&receiver, &delivered, &over));
        scope.spawn(|| send(&sender, destination, request.payload_len, &sent, &over));
        thread::sleep(WARM_UP);
        let now = || {
            (
                sent.load(Ordering::Relaxed),
                delivered.load(Ordering::Relaxed),
            )
        };
        let (start, before) = (Instant::now(), now());
        thread::sleep(request.duration);
        let after = now();
        over.store(true, Ordering::Relaxed);
        BlastReport {
            sent: after.0 - before.0,
            delivered: after.1 - before.1,
            elapsed: start.elapsed(),
        }
    });
    Ok(report)
}

fn send(
    socket: &UdpSocket,
    destination: SocketAddrV4,
    payload_len: usize,
    sent: &AtomicU64,
    over: &AtomicBool,
) {
    let payload = vec![0x5a; payload_len];
    let mut batch = SendBatch::new(BATCH);
    let head = MessageHead {
        destination,
        segment: None,
        ecn: 0,
    };
    while !over.load(Ordering::Relaxed) {
        let mut sending = batch.start();
        while !sending.is_full() {
            sending.message(head);
            sending.piece(&payload);
        }
        match sending.send(socket, 0) {
            Ok(count) => {
                sent.fetch_add(count as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let _ = poll::wait_writable(socket.as_fd(), POLL_TIMEOUT);
            }
            // An ICMP error for an earlier datagram, or no buffer: the next may leave.
            Err(_) => {}
        }
    }
}

fn receive(socket: &UdpSocket, delivered: &AtomicU64, over: &AtomicBool) {
    let mut batch = ReceiveBatch::new(BATCH, 9216);
    while !over.load(Ordering::Relaxed) {
        match batch.receive(socket, BATCH) {
            Ok(count) => {
                delivered.fetch_add(count as u64, Ordering::Relaxed);
            }
            Err(_) => {
                let _ = poll::wait_readable([socket.as_fd()], Some(POLL_TIMEOUT));
            }
        }
    }
}
