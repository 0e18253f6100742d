//! TCP streams of a given duration, to measure throughput.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::failed;
use super::window::{CpuTime, WARM_UP};
use crate::sys::netns::Namespace;
use crate::testbed::namespace::TestbedError;

const CHUNK: usize = 128 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct StreamRequest {
    /// An address of the receiving namespace.
    pub address: Ipv4Addr,
    /// Number of streams, each with one thread at either end.
    pub streams: usize,
    /// How long to measure.
    pub duration: Duration,
}

/// Result of [`tcp_streams`].
#[derive(Debug, Clone, Copy)]
pub struct StreamReport {
    /// Payload bytes that arrived.
    pub bytes: u64,
    /// Time of the measurement.
    pub elapsed: Duration,
    /// Processor time of the whole machine during the measurement.
    pub cpu: Duration,
}

impl StreamReport {
    /// Payload bits per second.
    #[must_use]
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64()
    }

    /// Processor seconds per gigabit.
    #[must_use]
    pub fn cpu_per_gigabit(&self) -> f64 {
        self.cpu.as_secs_f64() / (self.bytes as f64 * 8.0 / 1e9)
    }
}

/// Sends at full rate, and counts the bytes that arrive after a warm-up.
///
/// # Errors
/// If a connection cannot be established.
pub fn tcp_streams(
    from: &Namespace,
    to: &Namespace,
    request: StreamRequest,
) -> Result<StreamReport, TestbedError> {
    let explain = |error| failed(format!("send TCP streams to {}", request.address), error);
    let pairs = connect(from, to, request).map_err(explain)?;
    let arrived = AtomicU64::new(0);
    let report = thread::scope(|scope| {
        for (sender, receiver) in &pairs {
            scope.spawn(|| send(sender));
            scope.spawn(|| receive(receiver, &arrived));
        }
        thread::sleep(WARM_UP);
        let (start, cpu, before) = (
            Instant::now(),
            CpuTime::now(),
            arrived.load(Ordering::Relaxed),
        );
        thread::sleep(request.duration);
        let report = StreamReport {
            bytes: arrived.load(Ordering::Relaxed) - before,
            elapsed: start.elapsed(),
            cpu: cpu.elapsed(),
        };
        // Ends every thread: writes fail, reads return the end of the stream.
        for (sender, receiver) in &pairs {
            let _ = sender.shutdown(Shutdown::Both);
            let _ = receiver.shutdown(Shutdown::Both);
        }
        report
    });
    Ok(report)
}

fn connect(
    from: &Namespace,
    to: &Namespace,
    request: StreamRequest,
) -> io::Result<Vec<(TcpStream, TcpStream)>> {
    let listener = to.try_run(|| TcpListener::bind(SocketAddrV4::new(request.address, 0)))?;
    let destination = listener.local_addr()?;
    let listener = socket2::Socket::from(listener);
    listener.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    (0..request.streams)
        .map(|_| {
            let sender =
                from.try_run(|| TcpStream::connect_timeout(&destination, CONNECT_TIMEOUT))?;
            let (receiver, _) = listener.accept()?;
            Ok((sender, receiver.into()))
        })
        .collect()
}

fn send(mut stream: &TcpStream) {
    let chunk = vec![0x5a; CHUNK];
    while stream.write_all(&chunk).is_ok() {}
}

fn receive(mut stream: &TcpStream, arrived: &AtomicU64) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(length @ 1..) = stream.read(&mut chunk) {
        arrived.fetch_add(length as u64, Ordering::Relaxed);
    }
}
