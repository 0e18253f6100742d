//! Traffic between namespaces: echo requests, transfers whose content is verified, and UDP round
//! trips. All of it is bounded in time.

mod blast;
mod content;
mod ping;
mod stream;
mod tcp;
mod udp;
mod window;

pub use blast::{BlastReport, BlastRequest, udp_blast};
pub use ping::{PingReport, PingRequest, ping};
pub use stream::{StreamReport, StreamRequest, tcp_streams};
pub use tcp::{TransferReport, TransferRequest, tcp_transfer};
pub use udp::{PingPongReport, PingPongRequest, UdpEcho, udp_echo, udp_ping_pong};

use std::io;

use super::namespace::TestbedError;

fn failed(what: impl Into<String>, source: io::Error) -> TestbedError {
    TestbedError::Io {
        what: what.into(),
        place: "the traffic generator".into(),
        source,
    }
}

/// Whether a socket timed out, or a signal interrupted it.
fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
