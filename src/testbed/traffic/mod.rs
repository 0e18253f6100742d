//! Traffic between namespaces: echo requests, transfers that are compared at both ends,
//! and datagrams sent to and fro. All of it is bounded in time.

mod blast;
mod content;
mod ping;
mod stream;
mod tcp;
mod tcp_counters;
mod udp;
mod window;

pub use blast::{BlastReport, BlastRequest, udp_blast};
pub use ping::{PingReport, PingRequest, ping};
pub use stream::{StreamReport, StreamRequest, tcp_streams};
pub use tcp::{Digest, TransferReport, TransferRequest, tcp_transfer};
pub use tcp_counters::TcpCounters;
pub use udp::{PingPongReport, PingPongRequest, UdpEcho, udp_echo, udp_ping_pong};

use std::io;

use super::namespace::TestbedError;

/// A system call of a traffic generator that failed.
fn failed(what: impl Into<String>, source: io::Error) -> TestbedError {
    TestbedError::Io {
        what: what.into(),
        place: "the traffic generator".into(),
        source,
    }
}

/// Whether a socket's timeout ran out, or a signal came.
fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
