//! What a namespace's TCP counted: retransmissions and disorder.

use std::fs;

use super::failed;
use crate::sys::netns::Namespace;
use crate::testbed::namespace::TestbedError;

/// Counters since the namespace was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpCounters {
    /// Segments sent, retransmissions left out.
    pub segments_out: u64,
    /// Segments sent again (`RetransSegs`).
    pub retransmitted: u64,
    /// Segments that came before their turn (`TCPOFOQueue`).
    pub out_of_order: u64,
    /// Times that a sender noticed that segments had overtaken each other, which is told
    /// apart from loss (`TCPSACKReorder`, `TCPTSReorder`, `TCPRenoReorder`).
    pub reordered: u64,
    /// Segments dropped for a wrong checksum (`InCsumErrors`).
    pub checksum_errors: u64,
}

impl TcpCounters {
    /// Reads them.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn read(namespace: &Namespace) -> Result<Self, TestbedError> {
        let read = || -> std::io::Result<String> {
            let mut text = fs::read_to_string("/proc/thread-self/net/snmp")?;
            text.push_str(&fs::read_to_string("/proc/thread-self/net/netstat")?);
            Ok(text)
        };
        namespace
            .run(read)
            .and_then(|inner| inner)
            .map(|text| Self::parse(&text))
            .map_err(|source| failed("read /proc/net/snmp and netstat", source))
    }

    fn parse(text: &str) -> Self {
        let find = |group, name| value(text, group, name).unwrap_or(0);
        Self {
            segments_out: find("Tcp:", "OutSegs"),
            retransmitted: find("Tcp:", "RetransSegs"),
            out_of_order: find("TcpExt:", "TCPOFOQueue"),
            reordered: ["TCPSACKReorder", "TCPTSReorder", "TCPRenoReorder"]
                .iter()
                .map(|name| find("TcpExt:", name))
                .sum(),
            checksum_errors: find("Tcp:", "InCsumErrors"),
        }
    }
}

/// Two lines a group: names, then values.
fn value(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let position = lines.next()?.split(' ').position(|word| word == name)?;
    lines.next()?.split(' ').nth(position)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_under_their_names() {
        let text = "Ip: Forwarding\nIp: 1\nTcp: MaxConn OutSegs RetransSegs InCsumErrors\n\
                    Tcp: -1 70 3 2\nTcpExt: TCPSACKReorder TCPOFOQueue TCPTSReorder\nTcpExt: 4 9 1\n";
        let expected = TcpCounters {
            segments_out: 70,
            retransmitted: 3,
            out_of_order: 9,
            reordered: 5,
            checksum_errors: 2,
        };
        assert_eq!(TcpCounters::parse(text), expected);
        assert_eq!(TcpCounters::parse(""), TcpCounters::default());
    }
}
