//! Brings the kernel's routes in line with the peers.
//!
//! A route reads `<subnet> via <subnet's network address> dev flannel.<VNI> onlink`, as
//! flannel installs it. A TUN device has no neighbours and ignores the gateway, but people
//! and scripts that read `ip route` expect it.
//!
//! With `DirectRouting`, the route to a peer on the same link reads `<subnet> via <its public
//! address> dev <link>`, as flannel's: no encapsulation.
//!
//! A route is ours if it has our protocol number, lies in our network, and leads over our
//! device or directly to a peer. No other route is ever touched, be it another instance's or
//! an administrator's.

mod diff;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;

pub use diff::{NextHop, OverlayNetwork, overlay_route};

use self::diff::RouteChanges;
use super::netlink::{Netlink, NetlinkError, Route, concurrently};

/// Why one subnet has no route, or an old one could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Another program or a person installed a route with the same prefix.
    #[error(
        "no route to {subnet} was installed, because there is one that is not ours: \
         {existing}; remove it or keep that subnet out of the overlay"
    )]
    Conflict {
        /// The leased subnet.
        subnet: Ipv4Net,
        /// The foreign route, much as `ip route` prints it.
        existing: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// What was changed in the kernel's routing table.
#[derive(Debug, Default)]
pub struct RouteReport {
    /// Routes added.
    pub added: usize,
    /// Routes whose next hop was corrected.
    pub replaced: usize,
    /// Routes removed.
    pub removed: usize,
    /// Failures by subnet; they do not affect the other subnets.
    pub failed: Vec<(Ipv4Net, RouteError)>,
    /// Prefixes in the overlay network for which there are foreign routes.
    pub foreign: BTreeSet<Ipv4Net>,
}

/// Brings the kernel's routes in line with the `desired` next hops. Idempotent.
///
/// # Errors
///
/// If the kernel's routes cannot be read; what fails for one subnet is in
/// [`RouteReport::failed`].
pub async fn reconcile(
    netlink: &Netlink,
    desired: &BTreeMap<Ipv4Net, NextHop>,
    overlay: OverlayNetwork,
) -> Result<RouteReport, NetlinkError> {
    let installed = netlink.routes().await?;
    let mut report = apply(netlink, overlay.diff(desired, &installed)).await;
    let foreign = installed.iter().filter(|route| !overlay.owns(route));
    report.foreign = foreign
        .map(|route| route.destination)
        .filter(|prefix| overlay.network.contains(prefix))
        .collect();
    Ok(report)
}

async fn apply(netlink: &Netlink, changes: RouteChanges) -> RouteReport {
    let mut report = RouteReport::default();
    for (subnet, existing) in changes.conflicts {
        let existing = existing.to_string();
        let conflict = RouteError::Conflict { subnet, existing };
        report.failed.push((subnet, conflict));
    }
    let removals = changes.remove.iter().map(async |route| {
        let removed = remove(netlink, route).await;
        (route.destination, removed)
    });
    report.removed = report.record(concurrently(removals).await);
    let replacements = changes.replace.iter().map(async |(old, new)| {
        let replaced = replace(netlink, old, new).await;
        (new.destination, replaced)
    });
    report.replaced = report.record(concurrently(replacements).await);
    let additions = changes.add.iter().map(async |route| {
        let added = add(netlink, route).await;
        (route.destination, added)
    });
    report.added = report.record(concurrently(additions).await);
    report
}

/// A change of the next hop to a peer's subnet; `None` means no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHopChange {
    /// The peer's subnet.
    pub subnet: Ipv4Net,
    /// The next hop so far.
    pub before: Option<NextHop>,
    /// The next hop from now on.
    pub after: Option<NextHop>,
}

/// Applies changes of some peers without reading the kernel's routes. If those are not what
/// they should have been, a change fails or leaves a route behind, which [`reconcile`] repairs.
/// A foreign route with the same prefix and another metric goes unnoticed, so subnets that
/// have one ([`RouteReport::foreign`]) are left to [`reconcile`] too.
pub async fn update(
    netlink: &Netlink,
    changes: &[NextHopChange],
    overlay: OverlayNetwork,
) -> RouteReport {
    let updates = changes.iter().map(async |change| {
        let route = |next_hop: Option<NextHop>| Some(overlay.route(change.subnet, next_hop?));
        let updated = match (route(change.before), route(change.after)) {
            (Some(old), Some(new)) => replace(netlink, &old, &new).await,
            (Some(old), None) => remove(netlink, &old).await,
            (None, Some(new)) => add(netlink, &new).await,
            (None, None) => Ok(()),
        };
        (change.subnet, updated)
    });
    let mut report = RouteReport::default();
    let updated = concurrently(updates).await;
    report.record(updated);
    report
}

impl RouteReport {
    /// Records the failures; returns the number of successes.
    fn record(&mut self, done: Vec<(Ipv4Net, Result<(), RouteError>)>) -> usize {
        let (all, before) = (done.len(), self.failed.len());
        let failed = done
            .into_iter()
            .filter_map(|(subnet, done)| Some((subnet, done.err()?)));
        self.failed.extend(failed);
        all - (self.failed.len() - before)
    }
}

async fn remove(netlink: &Netlink, route: &Route) -> Result<(), RouteError> {
    match netlink.delete_route(route).await {
        Err(error) if !error.is_missing() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Deletes and adds: the kernel's own replacement takes the first route with the prefix,
/// which need not be ours by then.
async fn replace(netlink: &Netlink, old: &Route, new: &Route) -> Result<(), RouteError> {
    remove(netlink, old).await?;
    add(netlink, new).await
}

async fn add(netlink: &Netlink, route: &Route) -> Result<(), RouteError> {
    match netlink.add_route(route).await {
        // Added since the kernel's routes were read.
        Err(error) if error.is_exists() => Err(RouteError::Conflict {
            subnet: route.destination,
            existing: "one that appeared just now".into(),
        }),
        other => Ok(other?),
    }
}
