//! The response to a status request.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Enums that are a word on the wire, and print as that word. A word of a later version is kept as
/// it came, so an older client still reads the status and shows it.
macro_rules! words {
    ($(
        $(#[$doc:meta])*
        $name:ident { $($(#[$attribute:meta])* $variant:ident,)* }
    )*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name {
            $($(#[$attribute])* $variant,)*
            /// Anything else.
            #[serde(untagged)]
            Other(String),
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.serialize(f)
            }
        }
    )*};
}

words! {
    /// What the daemon does now; otherwise what a start waits for, or what keeps a node that
    /// served from forwarding.
    Phase {
        /// It serves a subnet.
        Serving,
        /// It was started just now.
        #[default]
        Starting,
    }

    /// What the datastore says about our lease.
    LeaseState {
        /// It is ours.
        Held,
        /// It was ours, and the datastore does not answer.
        Unconfirmed,
        /// Another node has our subnet.
        Taken,
        /// Another daemon or machine keeps writing it.
        Contended,
        /// The record is not a lease any more.
        Unreadable,
        /// There is none yet.
        #[default]
        #[serde(rename = "none")]
        Pending,
    }

    /// Whether a peer can be reached.
    PeerState {
        /// It answers probes, or packets come from it.
        Ok,
        /// It does not answer probes, and nothing comes from it.
        Silent,
        /// It does not answer probes, and packets come from it.
        OneWay,
        /// It was not probed yet.
        #[default]
        Unknown,
        /// It is known from the offline cache, and nothing came from it yet.
        Stale,
        /// Nothing is sent to it.
        Blocked,
    }

    /// How packets reach a peer; otherwise why nothing is sent to it.
    PeerRoute {
        /// Through the tunnel.
        #[default]
        Tunnel,
        /// By a direct route on the underlay.
        Direct,
    }

    /// How a peer is probed.
    ProbeMethod {
        /// Inside of the tunnel: peers that run this program.
        #[default]
        InBand,
        /// By ICMP echo.
        Icmp,
    }

    /// What is done about packets that break the peer check.
    PeerCheck {
        /// They are dropped.
        #[default]
        Enforce,
        /// They are logged, and pass.
        Log,
        /// Nothing is checked.
        Off,
    }

    /// What a counter counts.
    CounterKind {
        /// Packets that came in or went out.
        Packets,
        /// Their bytes.
        Bytes,
        /// Packets from the device that were dropped.
        DropOut,
        /// Packets from the tunnel that were dropped.
        DropIn,
        /// Events that are not packets.
        #[default]
        Event,
    }
}

impl PeerState {
    /// Every state that this version knows.
    pub(crate) const ALL: [Self; 6] = [
        Self::Ok,
        Self::Silent,
        Self::OneWay,
        Self::Unknown,
        Self::Stale,
        Self::Blocked,
    ];

    /// Whether packets to the peer are lost.
    pub(crate) const fn is_bad(&self) -> bool {
        matches!(self, Self::Silent | Self::OneWay | Self::Blocked)
    }
}

/// A daemon at a moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What it does.
    pub phase: Phase,
    /// The program's version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the daemon was started.
    pub uptime_seconds: u64,
    /// This node; `None` until it serves.
    pub node: Option<NodeStatus>,
    /// The datastore.
    pub datastore: DatastoreStatus,
    /// The packet loop; `None` until it runs.
    pub packet_loop: Option<PacketLoopStatus>,
    /// The peers, by subnet.
    pub peers: Vec<PeerStatus>,
    /// Records that are refused now.
    pub refused: Vec<RefusedRecord>,
    /// Records refused since the start, by reason.
    pub refused_total: Vec<(String, u64)>,
    /// All counters.
    pub counters: Vec<CounterStatus>,
    /// Round trips of answered probes, in seconds; `None` where peers are not probed.
    #[serde(default)]
    pub round_trips: Option<Histogram>,
    /// Repairs since the start of what others had changed: `device`, `routes`, `rules`.
    #[serde(default, rename = "mended")]
    pub repairs: Vec<(String, u64)>,
}

/// A histogram.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Sum of all values.
    pub sum: f64,
    /// Upper bound of each bucket, ascending, and the number of values in that bucket alone; the
    /// last bucket has no bound.
    pub counts: Vec<(Option<f64>, u64)>,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Our subnet.
    pub subnet: Ipv4Net,
    /// The overlay network.
    pub network: Ipv4Net,
    /// The published address.
    pub public_ip: Ipv4Addr,
    /// The underlay interface.
    pub interface: String,
    /// Its MTU in bytes.
    pub interface_mtu: u32,
    /// The overlay device.
    pub device: String,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// UDP port of the tunnels.
    pub port: u16,
    /// Our VTEP's MAC address.
    pub vtep_mac: String,
}

/// The datastore, and our lease in it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DatastoreStatus {
    /// Kind and address, without secrets.
    pub place: String,
    /// Our lease.
    pub lease: LeaseState,
    /// More about the lease, for people.
    pub detail: Option<String>,
    /// Seconds since the last answer of the datastore; `None` if it has not answered since the
    /// start.
    pub heard_seconds_ago: Option<u64>,
    /// Age in seconds of the offline cache, while the daemon runs from it.
    #[serde(default)]
    pub memory_seconds: Option<u64>,
    /// Seconds until our lease expires unless it is renewed; `None` if it does not expire.
    #[serde(default)]
    pub lease_ends_in_seconds: Option<u64>,
    /// Renewals of our lease since the start.
    #[serde(default)]
    pub renewals: u64,
    /// Renewals that failed.
    #[serde(default)]
    pub renewals_failed: u64,
    /// Complete lists that were compared with the known peers since the start, by reason: `watch`
    /// (the watch had a gap), `missing-peers` (a list was read again before it was believed).
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
    /// Offloads that the kernel does not have, or gets wrong.
    pub lacking: Vec<String>,
    /// What happens to packets that break the peer check.
    pub peer_check: PeerCheck,
    /// Packets moved by one system call, by call.
    #[serde(default)]
    pub batches: Vec<BatchStatus>,
}

/// How many packets each system call of one kind moves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchStatus {
    /// `send` (to peers), `receive` (from them), `write` (to the device).
    pub call: String,
    /// Calls by number of packets.
    pub sizes: Histogram,
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
    /// How packets reach it.
    #[serde(rename = "way")]
    pub route: PeerRoute,
    /// Whether it can be reached.
    pub state: PeerState,
    /// How it is probed.
    #[serde(default)]
    pub probe: Option<ProbeMethod>,
    /// Last round trip of a probe, in microseconds.
    pub rtt_us: Option<u64>,
    /// Unanswered probes among the latest, in percent.
    pub loss_percent: Option<u8>,
    /// Probes that did not reach the peer, in percent of those sent. Only peers that run this
    /// program report it.
    #[serde(default)]
    pub loss_out_percent: Option<u8>,
    /// Probes whose reply was lost, in percent of those that reached the peer.
    #[serde(default)]
    pub loss_in_percent: Option<u8>,
    /// Longest inner packet that passes there and back, in bytes: unfragmented if the peer is
    /// probed in-band, possibly in fragments otherwise.
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
    /// The record's name, shortened.
    pub name: String,
    /// Short name of the reason.
    pub reason: String,
    /// The reason in words.
    pub text: String,
    /// The record that it conflicts with.
    pub rival: Option<String>,
}

/// A counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterStatus {
    /// Its stable name.
    pub name: String,
    /// What it counts.
    pub kind: CounterKind,
    /// Its value since the packet loop started.
    pub value: u64,
}

impl CounterStatus {
    /// Whether it counts drops, and there were any.
    pub(crate) const fn has_drops(&self) -> bool {
        matches!(self.kind, CounterKind::DropOut | CounterKind::DropIn) && self.value > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_later_version_are_kept() {
        let read = |text: &str| serde_json::from_str::<PeerState>(text).unwrap();
        assert_eq!(read(r#""one-way""#), PeerState::OneWay);
        let later = read(r#""half-open""#);
        assert_eq!(later, PeerState::Other("half-open".into()));
        assert_eq!(serde_json::to_string(&later).unwrap(), r#""half-open""#);
        assert_eq!(
            format!("{later:>10} {:<8}|", PeerState::OneWay),
            " half-open one-way |"
        );
    }

    #[test]
    fn words_on_the_wire_do_not_change() {
        let states = PeerState::ALL.map(|state| state.to_string());
        let expected = ["ok", "silent", "one-way", "unknown", "stale", "blocked"];
        assert_eq!(states, expected);
        for (word, expected) in [
            (Phase::Serving.to_string(), "serving"),
            (Phase::Other("waiting".into()).to_string(), "waiting"),
            (LeaseState::Pending.to_string(), "none"),
            (LeaseState::Unconfirmed.to_string(), "unconfirmed"),
            (ProbeMethod::InBand.to_string(), "in-band"),
            (PeerCheck::Enforce.to_string(), "enforce"),
            (CounterKind::DropOut.to_string(), "drop-out"),
        ] {
            assert_eq!(word, expected);
        }
    }
}
