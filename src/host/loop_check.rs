//! The way of a tunnel's datagrams: whether they would come back to this host.
//!
//! A peer whose public address is one of our own, or is routed into the overlay device, gets
//! nothing; each packet for it would only come by once more.

use std::fmt;
use std::net::Ipv4Addr;

use futures_util::{StreamExt, stream};

use super::netlink::{Netlink, RouteLookup};

/// Questions that are on their way to the kernel at a time.
const AT_ONCE: usize = 64;

/// Why datagrams to an address would come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loop {
    /// It is an address of this host.
    OwnAddress,
    /// The kernel's route to it leads into the overlay device.
    IntoOverlay,
}

impl fmt::Display for Loop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnAddress => "it is an address of this host",
            Self::IntoOverlay => "the route to it leads into the overlay device",
        })
    }
}

/// For each address whether datagrams to it from `source` would come back, where `device` is the index of
/// the overlay device. Where the kernel does not say, they would not: a daemon that cannot
/// ask goes on.
pub async fn loops(
    netlink: &Netlink,
    source: Ipv4Addr,
    addresses: impl IntoIterator<Item = Ipv4Addr>,
    device: u32,
) -> Vec<Option<Loop>> {
    stream::iter(addresses)
        .map(async |address| {
            let asked = netlink.route_get_from(source, address).await;
            let found = asked.unwrap_or_else(|error| {
                tracing::debug!(event = "route_lookup_failed", %address, %error);
                None
            });
            judge(found?, device)
        })
        .buffered(AT_ONCE)
        .collect()
        .await
}

fn judge(way: RouteLookup, device: u32) -> Option<Loop> {
    if way.local {
        Some(Loop::OwnAddress)
    } else if way.ifindex == device {
        Some(Loop::IntoOverlay)
    } else {
        None
    }
}
