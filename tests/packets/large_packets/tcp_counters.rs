//! A namespace's TCP counters: retransmissions and reordering.

use std::fs;

use uvxlan::sys::netns::Namespace;

/// Counters since the namespace was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TcpCounters {
    /// Segments sent, without retransmissions.
    pub(crate) segments_out: u64,
    /// `RetransSegs`
    pub(crate) retransmitted: u64,
    /// Segments that arrived out of order (`TCPOFOQueue`).
    pub(crate) out_of_order: u64,
    /// Times that a sender detected reordering as opposed to loss (`TCPSACKReorder`,
    /// `TCPTSReorder`, `TCPRenoReorder`).
    pub(crate) reordered: u64,
    /// `InCsumErrors`
    pub(crate) checksum_errors: u64,
}

impl TcpCounters {
    pub(crate) fn read(namespace: &Namespace) -> Self {
        let text = namespace.try_run(|| {
            let snmp = fs::read_to_string("/proc/thread-self/net/snmp")?;
            Ok(snmp + &fs::read_to_string("/proc/thread-self/net/netstat")?)
        });
        Self::parse(&text.unwrap())
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

/// Each group has two lines: names, then values.
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
