//! What a host asks for.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::super::lease::LeaseAttrs;
use crate::wire::MacAddr;

/// What a host asks for.
#[derive(Debug, Clone)]
pub struct AcquireRequest {
    /// The address under which other hosts reach this one; identifies our lease.
    pub public_ip: Ipv4Addr,
    /// What to publish.
    pub attrs: LeaseAttrs,
    /// The subnet before the restart, from this host's files.
    pub previous: Option<Ipv4Net>,
    /// The subnet that containers of this host may have addresses of: if it is not available,
    /// [`acquire()`](super::acquire()) fails instead of taking another one.
    pub in_use: Option<Ipv4Net>,
    /// MAC of flannel's kernel device, if this host has one: a lease with it is ours.
    pub device_mac: Option<MacAddr>,
    /// Whether peers accept subnets of other lengths than the config's (`--mixed-lengths`), so
    /// that those are taken.
    pub mixed_lengths: bool,
    /// How long the lease outlives the host; flannel's is 24 h.
    pub ttl: Duration,
}
