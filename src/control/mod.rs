//! What a running daemon can be asked, and what it answers: one line of JSON each way over a
//! unix socket, versioned. The same types serve `uvxlan status`, `trace`, `top`, the metrics
//! page and whoever else reads them.
#![forbid(unsafe_code)]

pub mod client;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Version of this protocol. Fields may be added under one version; a reader skips those it
/// does not know.
pub const VERSION: u32 = 1;
/// Longest line of a request, in bytes.
pub const MAX_REQUEST: usize = 4096;

/// A question: `{"v":1,"ask":"status"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub v: u32,
    /// What is asked.
    #[serde(flatten)]
    pub ask: Ask,
}

/// What can be asked. None of it changes anything; `status` and `trace` are for all who may
/// use the socket, `capture` shows what containers say and is for root and the daemon's user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Ask {
    /// Everything: node, datastore, packet loop, peers, refused records, counters.
    Status,
    /// Which way a packet to an address takes, and what would come back.
    Trace {
        /// The address.
        to: Ipv4Addr,
    },
    /// Packets as they pass. After the answer, the connection carries a pcapng stream; it
    /// ends when the asking side closes its half, or has as many as it wanted.
    Capture(CaptureRequest),
}

/// Which packets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaptureRequest {
    /// `inner` (at the device), `outer` (VXLAN, at the socket), or `both`, the default.
    pub view: Option<String>,
    /// Only those of this peer: its address or its subnet.
    pub peer: Option<String>,
    /// Only those with this inner address.
    pub host: Option<Ipv4Addr>,
    /// Only those that are dropped.
    pub dropped: bool,
    /// Bytes of a packet that are kept; all by default.
    pub snap_len: Option<u32>,
    /// So many, then end.
    pub count: Option<u64>,
}

/// An answer, on one line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub v: u32,
    /// What was asked for, or why not.
    #[serde(flatten)]
    pub reply: Reply,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Ask::Status`].
    Status(Box<Status>),
    /// To [`Ask::Trace`].
    Trace(Vec<Step>),
    /// To [`Ask::Capture`]: the stream follows this line.
    Capture {},
    /// The question can't be answered, in words.
    Error(String),
}

/// A daemon at a moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// `serving`, or what a start waits for.
    pub phase: String,
    /// The program's version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the daemon was started.
    pub uptime_seconds: u64,
    /// This node; none before it serves.
    pub node: Option<NodeStatus>,
    /// The datastore.
    pub datastore: DatastoreStatus,
    /// The packet loop; none before it runs.
    pub packet_loop: Option<PacketLoopStatus>,
    /// The peers, by subnet.
    pub peers: Vec<PeerStatus>,
    /// Records that are refused now.
    pub refused: Vec<RefusedRecord>,
    /// How often records were refused since the start, by reason.
    pub refused_total: Vec<(String, u64)>,
    /// All counters.
    pub counters: Vec<CounterStatus>,
    /// Round trips of answered probes, in seconds; none where peers are not probed.
    #[serde(default)]
    pub round_trips: Option<SizeCounts>,
    /// How often something that others had changed was put back since the start: `device`,
    /// `routes`, `rules`.
    #[serde(default)]
    pub mended: Vec<(String, u64)>,
}

/// Sizes, counted in ranges.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SizeCounts {
    /// Sum of all sizes.
    pub sum: f64,
    /// Largest size of each range, ascending, and how many were in it and in none before it;
    /// the last one has no end.
    pub counts: Vec<(Option<f64>, u64)>,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Our subnet.
    pub subnet: Ipv4Net,
    /// The overlay network.
    pub network: Ipv4Net,
    /// The address that is published.
    pub public_ip: Ipv4Addr,
    /// The interface to the other hosts.
    pub interface: String,
    /// Its MTU in bytes.
    pub interface_mtu: u32,
    /// The overlay device.
    pub device: String,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// The network identifier.
    pub vni: u32,
    /// UDP port of the tunnels.
    pub port: u16,
    /// Our VTEP's MAC address.
    pub vtep_mac: String,
}

/// The datastore, as far as we know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DatastoreStatus {
    /// Kind and place, without secrets.
    pub place: String,
    /// Our lease: `held`, `unconfirmed`, `taken`, `contended`, `unreadable`, or `none`.
    pub lease: String,
    /// More about that, for a person.
    pub detail: Option<String>,
    /// Seconds since the store last said something; none where it did not since the start.
    pub heard_seconds_ago: Option<u64>,
    /// Where the store has said nothing since the start: the age of the memory that the daemon
    /// goes on from, in seconds.
    #[serde(default)]
    pub memory_seconds: Option<u64>,
    /// Seconds until our lease ends unless it is renewed; none where it does not end.
    #[serde(default)]
    pub lease_ends_in_seconds: Option<u64>,
    /// Renewals of our lease since the start.
    #[serde(default)]
    pub renewals: u64,
    /// Those that failed.
    #[serde(default)]
    pub renewals_failed: u64,
    /// Complete lists that were compared with what was known since the start, by reason:
    /// `watch` (the watch had missed something), `missing-peers` (a list was read again).
    #[serde(default)]
    pub resyncs: Vec<(String, u64)>,
}

/// The packet loop.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PacketLoopStatus {
    /// Packet threads.
    pub workers: usize,
    /// Offloads in use.
    pub offloads: String,
    /// What the kernel lacks, or does wrong.
    pub lacking: Vec<String>,
    /// Who may send: `enforce`, `log`, `off`.
    pub peer_check: String,
    /// Packets that one call moves, by call.
    #[serde(default)]
    pub batches: Vec<BatchStatus>,
}

/// How many packets calls of one kind move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchStatus {
    /// `send` (to peers), `receive` (from them), `write` (to the device).
    pub call: String,
    /// Calls by number of packets.
    pub sizes: SizeCounts,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Its address.
    pub public_ip: Ipv4Addr,
    /// Its VTEP's MAC address.
    pub vtep_mac: String,
    /// `tunnel`, `direct`, or why nothing is sent to it.
    pub way: String,
    /// `ok`, `silent` (probes go unanswered, and nothing comes), `one-way` (probes go
    /// unanswered, and packets come), `unknown` (not probed yet), `blocked` (nothing is sent to
    /// it), `stale` (known from memory, and nothing came from it yet).
    pub state: String,
    /// How it is probed: `in-band` (inside of the tunnel, peers of ours) or `icmp`.
    #[serde(default)]
    pub probe: Option<String>,
    /// Last round trip of a probe, in microseconds.
    pub rtt_us: Option<u64>,
    /// Unanswered probes among the latest, in percent.
    pub loss_percent: Option<u8>,
    /// Of the probes that were sent, what did not reach it, in percent; only peers of ours say.
    #[serde(default)]
    pub loss_out_percent: Option<u8>,
    /// Of those that reached it, what was answered in vain, in percent.
    #[serde(default)]
    pub loss_in_percent: Option<u8>,
    /// Longest inner packet that passes there and back, in bytes: to peers of ours in one
    /// piece, to others perhaps in fragments.
    pub path_mtu: Option<u16>,
    /// Seconds since a packet or a probe came from it.
    pub seen_seconds_ago: Option<u64>,
    /// Inner packets sent to it.
    pub out_packets: u64,
    /// Their bytes.
    pub out_bytes: u64,
    /// Inner packets received from it.
    pub in_packets: u64,
    /// Their bytes.
    pub in_bytes: u64,
}

/// A record that is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRecord {
    /// The record's name, cut.
    pub name: String,
    /// Short name of the reason.
    pub reason: String,
    /// The reason in words.
    pub text: String,
    /// The record that stands against it.
    pub rival: Option<String>,
}

/// A counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterStatus {
    /// Its stable name.
    pub name: String,
    /// `packets`, `bytes`, `drop-out`, `drop-in` or `event`.
    pub kind: String,
    /// Its value since the packet loop started.
    pub value: u64,
}

/// One thing that a packet's way depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What it is about.
    pub name: String,
    /// What was found.
    pub text: String,
    /// Whether the packet gets past it.
    pub passes: bool,
}

impl Step {
    /// A step that a packet gets past.
    #[must_use]
    pub fn passed(name: &str, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
            passes: true,
        }
    }

    /// A step where it ends.
    #[must_use]
    pub fn failed(name: &str, text: impl Into<String>) -> Self {
        Self {
            passes: false,
            ..Self::passed(name, text)
        }
    }
}

/// Reads a request; what is said to its sender where it is none.
///
/// # Errors
/// In words, for the sender.
pub fn read_request(line: &[u8]) -> Result<Ask, String> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    let version: Version = serde_json::from_slice(line).map_err(|error| {
        let error = one_line(&error);
        format!("a request is one line like {{\"v\":1,\"ask\":\"status\"}}: {error}")
    })?;
    if version.v != VERSION {
        let asked = version.v;
        return Err(format!(
            "this daemon speaks version {VERSION} of the protocol, not {asked}: use the program \
             that the daemon was started from"
        ));
    }
    serde_json::from_slice::<Request>(line)
        .map(|request| request.ask)
        .map_err(|error| format!("unknown request: {}", one_line(&error)))
}

/// What is said of a request repeats words of it, which may hold anything.
fn one_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_others_explained() {
        assert_eq!(read_request(br#"{"v":1,"ask":"status"}"#), Ok(Ask::Status));
        let trace = br#"{"v":1,"ask":"trace","to":"10.5.1.2","more":true}"#;
        let capture = br#"{"v":1,"ask":"capture","dropped":true}"#;
        let dropped = CaptureRequest {
            dropped: true,
            ..CaptureRequest::default()
        };
        assert_eq!(read_request(capture), Ok(Ask::Capture(dropped)));
        let to = Ipv4Addr::new(10, 5, 1, 2);
        assert_eq!(read_request(trace), Ok(Ask::Trace { to }));
        for (line, expected) in [
            (&br#"{"v":2,"ask":"status"}"#[..], "version 1"),
            (br#"{"v":1,"ask":"reboot"}"#, "unknown request"),
            (br#"{"v":1,"ask":"trace"}"#, "unknown request"),
            (b"", "one line"),
            (b"GET / HTTP/1.1", "one line"),
            // Found by the fuzzer: words of the request came back as they were.
            (br#"{"v":1,"ask":"tr\n\u001b[2J"}"#, "unknown request"),
        ] {
            let error = read_request(line).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn answers_survive_the_way() {
        let answer = Answer {
            v: VERSION,
            reply: Reply::Trace(vec![Step::failed("lease", "none")]),
        };
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(
            text,
            r#"{"v":1,"trace":[{"name":"lease","text":"none","passes":false}]}"#
        );
        assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), answer);
        let status = Answer {
            v: VERSION,
            reply: Reply::Status(Box::default()),
        };
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), status);
    }
}
