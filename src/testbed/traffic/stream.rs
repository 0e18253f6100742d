//! TCP streams for a while, to measure throughput.

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
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct StreamRequest {
    /// An address of the receiving namespace.
    pub address: Ipv4Addr,
    /// Number of streams, each with a thread at both ends.
    pub streams: usize,
    /// How long to measure.
    pub duration: Duration,
}

/// What arrived while it was measured.
#[derive(Debug, Clone, Copy)]
pub struct StreamReport {
    /// Payload bytes of all streams.
    pub bytes: u64,
    /// How long it was measured.
    pub elapsed: Duration,
    /// Processor time that the whole machine spent meanwhile.
    pub cpu: Duration,
}

impl StreamReport {
    /// Payload bits in a second.
    #[must_use]
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64()
    }

    /// Processor seconds for each gigabit.
    #[must_use]
    pub fn cpu_per_gigabit(&self) -> f64 {
        self.cpu.as_secs_f64() / (self.bytes as f64 * 8.0 / 1e9)
    }
}

/// Sends as much as goes through, and counts what arrives after a warm-up.
///
/// # Errors
/// When there is no connection.
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
        // Ends every thread: writes fail, reads see the end.
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
    let listener = to.run(|| TcpListener::bind(SocketAddrV4::new(request.address, 0)))??;
    let destination = listener.local_addr()?;
    let listener = socket2::Socket::from(listener);
    listener.set_read_timeout(Some(CONNECT))?;
    (0..request.streams)
        .map(|_| {
            let sender = from.run(|| TcpStream::connect_timeout(&destination, CONNECT))??;
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
