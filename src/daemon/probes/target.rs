//! Whom to ask and how, and what is known of it. Pure.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::loss::Loss;
use crate::subnet::validate::PeerRecord;
use crate::wire::MacAddr;

/// So many small probes unanswered in a row, and a peer is silent.
pub const SILENT_AFTER: u32 = 3;

/// How a peer is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// By a probe of our own, through the tunnel.
    InBand,
    /// By ICMP echo, to the network address of its subnet.
    Echo,
}

/// Whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The leased subnet.
    pub subnet: Ipv4Net,
    /// Where its datagrams go, and come from.
    pub public_ip: Ipv4Addr,
    /// Its VTEP's MAC.
    pub mac: MacAddr,
    /// Whether its lease promises answers to probes of our own.
    pub answers: bool,
    /// Whether it is reached without the tunnel: then a probe in the tunnel tells nothing.
    pub direct: bool,
}

impl Target {
    /// The peer of a lease.
    #[must_use]
    pub const fn new(record: &PeerRecord, direct: bool) -> Self {
        Self {
            subnet: record.subnet,
            public_ip: record.public_ip,
            mac: record.vxlan.vtep_mac,
            answers: record.answers_probes,
            direct,
        }
    }

    /// How it is asked.
    #[must_use]
    pub const fn means(&self) -> Means {
        if self.answers && !self.direct {
            Means::InBand
        } else {
            Means::Echo
        }
    }
}

/// What probes found out about a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// How it is asked.
    pub means: Means,
    /// Last round trip.
    pub rtt: Option<Duration>,
    /// Lost among the latest; none before the first ended.
    pub loss: Option<Loss>,
    /// Longest packet that passes, in bytes.
    pub path_mtu: Option<u16>,
    /// When it last asked or answered inside of the tunnel.
    pub heard: Option<Instant>,
    /// Small probes unanswered since the last answer.
    pub(super) unanswered: u32,
}

impl Health {
    /// Whether it answered nothing for some time.
    #[must_use]
    pub const fn is_silent(&self) -> bool {
        self.unanswered >= SILENT_AFTER
    }
}
