//! Which peer is probed and how, and what is known of it. Pure.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::loss::Loss;
use crate::subnet::validate::PeerRecord;
use crate::wire::MacAddr;

/// A peer is silent after this many small probes in a row without a reply.
pub(super) const SILENT_AFTER: u32 = 3;

/// How a peer is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// By a probe of our own, through the tunnel.
    InBand,
    /// By ICMP echo, to the network address of its subnet.
    Echo,
}

/// A peer to probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    /// The leased subnet.
    pub(super) subnet: Ipv4Net,
    /// Where its datagrams go, and come from.
    pub(super) public_ip: Ipv4Addr,
    /// Its VTEP's MAC.
    pub(super) mac: MacAddr,
    /// Whether its lease promises replies to probes of our own.
    pub(super) replies: bool,
    /// Whether it is reached without the tunnel: then a probe in the tunnel says nothing about
    /// the path of its packets.
    pub(super) direct: bool,
}

impl Target {
    /// The peer of a lease.
    pub(crate) const fn new(record: &PeerRecord, direct: bool) -> Self {
        Self {
            subnet: record.subnet,
            public_ip: record.public_ip,
            mac: record.vxlan.vtep_mac,
            replies: record.answers_probes,
            direct,
        }
    }

    pub(super) const fn method(&self) -> Method {
        if self.replies && !self.direct {
            Method::InBand
        } else {
            Method::Echo
        }
    }
}

/// What probes found out about a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) method: Method,
    /// Last round trip.
    pub(crate) rtt: Option<Duration>,
    /// Losses among the latest probes; `None` until one of them is answered or lost.
    pub(crate) loss: Option<Loss>,
    /// Longest packet that passes, in bytes.
    pub(crate) path_mtu: Option<u16>,
    /// When its last message came through the tunnel.
    pub(crate) heard: Option<Instant>,
    /// Small probes since the last reply.
    pub(super) unanswered: u32,
}

impl Health {
    pub(crate) const fn is_silent(&self) -> bool {
        self.unanswered >= SILENT_AFTER
    }
}
