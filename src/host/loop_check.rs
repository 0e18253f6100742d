//! Whether datagrams to a peer would come back to this host.
//!
//! That is so if the peer's public address is one of our own, or is routed into the overlay
//! device. Such a peer gets nothing: each packet for it would only arrive here once more.

use std::fmt;
use std::net::Ipv4Addr;

use super::netlink::{Netlink, RouteLookup, concurrently};

/// Why datagrams to an address would come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loop {
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

/// Checks for each address whether datagrams to it from `source` would come back; `device` is
/// the index of the overlay device. An address for which the kernel does not answer counts as
/// no loop: a daemon that cannot ask still carries traffic.
pub(crate) async fn find_loops(
    netlink: &Netlink,
    source: Ipv4Addr,
    addresses: impl IntoIterator<Item = Ipv4Addr>,
    device: u32,
) -> Vec<Option<Loop>> {
    let lookups = addresses.into_iter().map(async |address| {
        let found = netlink.route_get_from(source, address).await;
        let found = found.unwrap_or_else(|error| {
            tracing::debug!(event = "route_lookup_failed", %address, %error);
            None
        });
        classify(found?, device)
    });
    concurrently(lookups).await
}

fn classify(route: RouteLookup, device: u32) -> Option<Loop> {
    if route.local {
        Some(Loop::OwnAddress)
    } else if route.ifindex == device {
        Some(Loop::IntoOverlay)
    } else {
        None
    }
}
