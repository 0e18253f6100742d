//! Selects the external interface: the link and the address that the tunnels use, and the
//! address that is published to the peers.
//!
//! The rules are flannel's (`pkg/ipmatch/match.go: LookupExtIface` and `main.go`).

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use regex::Regex;

use super::netlink::{AddressInfo, Netlink, NetlinkError};

/// The options that select the interface; without any, it is that of the default route.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// `--iface`, in order: an interface name or address.
    pub interfaces: Vec<String>,
    /// `--iface-regex`, in order; unanchored, matched against addresses first, then names.
    pub patterns: Vec<String>,
    /// `--iface-can-reach`: the interface over which the kernel would send to this address.
    pub can_reach: Option<Ipv4Addr>,
    /// `--public-ip`: the address to publish. Without the other options it also selects the
    /// interface that has it, as in flannel since v0.12.
    pub public_ip: Option<Ipv4Addr>,
}

impl Selection {
    fn names_no_interface(&self) -> bool {
        self.interfaces.is_empty() && self.patterns.is_empty() && self.can_reach.is_none()
    }
}

/// The selected interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalInterface {
    /// Interface name.
    pub name: String,
    /// Interface index.
    pub index: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// Source address of the tunnels.
    pub address: Ipv4Addr,
    /// The address published in the lease.
    pub public_ip: Ipv4Addr,
}

/// A link of the host.
#[derive(Debug, Clone)]
pub struct HostLink {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses in the kernel's order; IPv6 ones are ignored.
    pub addresses: Vec<AddressInfo>,
}

/// The state of the host that the selection depends on.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Links by index.
    pub links: Vec<HostLink>,
    /// Link of the IPv4 default route.
    pub default_route: Option<u32>,
    /// Link and source address by which the kernel reaches [`Selection::can_reach`].
    pub can_reach: Option<(u32, Option<Ipv4Addr>)>,
}

/// Why there is no external interface.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// No interface matches the options.
    #[error("no interface matches: {}; this host has: {seen}", tried.join("; "))]
    NoMatch {
        /// Each attempt and why it failed.
        tried: Vec<String>,
        /// Interfaces with their addresses.
        seen: String,
    },
    /// There are no options, and there is no default route.
    #[error(
        "there is no IPv4 default route to select the interface by; name one with --iface, \
         this host has: {seen}"
    )]
    NoDefaultRoute {
        /// Interfaces with their addresses.
        seen: String,
    },
    /// The interface of the default route can't be used.
    #[error("the default route's interface can't be used: {reason}; this host has: {seen}")]
    Unusable {
        /// What is missing.
        reason: String,
        /// Interfaces with their addresses.
        seen: String,
    },
}

/// Reads from the kernel what [`choose`] needs.
///
/// # Errors
///
/// If a netlink request fails.
pub async fn snapshot(netlink: &Netlink, selection: &Selection) -> Result<Snapshot, NetlinkError> {
    let addresses = netlink.addresses(None).await?;
    let links = netlink.links().await?.into_iter().map(|link| HostLink {
        addresses: addresses
            .iter()
            .filter(|address| address.ifindex == link.index)
            .cloned()
            .collect(),
        index: link.index,
        name: link.name,
        mtu: link.mtu,
    });
    let can_reach = match selection.can_reach {
        Some(destination) => netlink.route_get(destination).await?,
        None => None,
    };
    Ok(Snapshot {
        links: links.collect(),
        default_route: netlink.default_route_ifindex().await?,
        can_reach: can_reach.map(|lookup| (lookup.ifindex, lookup.prefsrc)),
    })
}

/// Selects the external interface by `--iface` in order, then `--iface-regex`, then
/// `--iface-can-reach`; without any of them by `--public-ip`, and without that by the default
/// route. The first usable one wins; options that failed before it are logged.
///
/// # Errors
///
/// If none is usable, with the reasons and the interfaces of the host.
pub fn choose(
    selection: &Selection,
    snapshot: &Snapshot,
) -> Result<ExternalInterface, InterfaceError> {
    if selection.names_no_interface() && selection.public_ip.is_none() {
        return by_default_route(snapshot);
    }
    let mut tried = Vec::new();
    for attempt in attempts(selection) {
        match attempt.find(snapshot) {
            Ok(found) => {
                for reason in &tried {
                    tracing::warn!(
                        event = "interface_passed_over",
                        reason,
                        chosen = found.name,
                        "passed over an interface option"
                    );
                }
                let public_ip = selection.public_ip.unwrap_or(found.address);
                return Ok(ExternalInterface { public_ip, ..found });
            }
            Err(reason) => tried.push(reason),
        }
    }
    Err(InterfaceError::NoMatch {
        tried,
        seen: describe(&snapshot.links),
    })
}

fn by_default_route(snapshot: &Snapshot) -> Result<ExternalInterface, InterfaceError> {
    let seen = || describe(&snapshot.links);
    let Some(index) = snapshot.default_route else {
        return Err(InterfaceError::NoDefaultRoute { seen: seen() });
    };
    let usable = snapshot.by_index(index).and_then(|link| link.usable(None));
    usable.map_err(|reason| InterfaceError::Unusable {
        reason,
        seen: seen(),
    })
}

enum Attempt<'a> {
    Address(Ipv4Addr),
    Name(&'a str),
    Pattern(&'a str),
    CanReach(Ipv4Addr),
}

fn attempts(selection: &Selection) -> impl Iterator<Item = Attempt<'_>> {
    let named = selection
        .interfaces
        .iter()
        .map(|text| text.parse().map_or(Attempt::Name(text), Attempt::Address));
    let patterns = selection.patterns.iter().map(|text| Attempt::Pattern(text));
    let reach = selection.can_reach.map(Attempt::CanReach);
    let public = selection
        .public_ip
        .filter(|_| selection.names_no_interface())
        .map(Attempt::Address);
    named.chain(patterns).chain(reach).chain(public)
}

impl Attempt<'_> {
    fn find(&self, snapshot: &Snapshot) -> Result<ExternalInterface, String> {
        match *self {
            Self::Address(address) => snapshot
                .links
                .iter()
                .find(|link| link.ipv4().any(|entry| entry.0 == address))
                .ok_or_else(|| format!("no interface has the address {address}"))?
                .usable(Some(address)),
            Self::Name(name) => snapshot
                .links
                .iter()
                .find(|link| link.name == name)
                .ok_or_else(|| format!("no interface is called {name:?}"))?
                .usable(None),
            Self::Pattern(pattern) => by_pattern(pattern, &snapshot.links),
            Self::CanReach(destination) => {
                let no_route = || format!("the kernel has no route to {destination}");
                let (index, source) = snapshot.can_reach.ok_or_else(no_route)?;
                snapshot.by_index(index)?.usable(source)
            }
        }
    }
}

fn by_pattern(pattern: &str, links: &[HostLink]) -> Result<ExternalInterface, String> {
    let regex = Regex::new(pattern)
        .map_err(|error| format!("{pattern:?} is no regular expression: {error}"))?;
    for link in links {
        let addresses = link.preferred();
        let matching = addresses
            .into_iter()
            .find(|address| regex.is_match(&address.to_string()));
        if matching.is_some() {
            return link.usable(matching);
        }
    }
    links
        .iter()
        .find(|link| regex.is_match(&link.name))
        .ok_or_else(|| format!("neither an address nor a name matches {pattern:?}"))?
        .usable(None)
}

impl Snapshot {
    fn by_index(&self, index: u32) -> Result<&HostLink, String> {
        self.links
            .iter()
            .find(|link| link.index == index)
            .ok_or_else(|| format!("the interface with index {index} is gone"))
    }
}

impl HostLink {
    fn ipv4(&self) -> impl Iterator<Item = (Ipv4Addr, &AddressInfo)> {
        self.addresses
            .iter()
            .filter_map(|entry| match entry.address {
                IpAddr::V4(address) => Some((address, entry)),
                IpAddr::V6(_) => None,
            })
    }

    /// Possible source addresses, best first, in the order of newer flannel: without deprecated
    /// ones; global before link-local, then permanent ones, then those that are not temporary;
    /// otherwise the kernel's order.
    fn preferred(&self) -> Vec<Ipv4Addr> {
        let mut usable: Vec<_> = self
            .ipv4()
            .filter(|(address, entry)| !entry.deprecated && is_unicast(*address))
            .collect();
        usable.sort_by_key(|(address, entry)| {
            (address.is_link_local(), !entry.permanent, entry.temporary)
        });
        usable.into_iter().map(|(address, _)| address).collect()
    }

    /// This link with `address`, or else its best one; or why it is unusable.
    fn usable(&self, address: Option<Ipv4Addr>) -> Result<ExternalInterface, String> {
        let name = &self.name;
        let address = address
            .or_else(|| self.preferred().first().copied())
            .ok_or_else(|| format!("{name} has no IPv4 address to send from"))?;
        if self.mtu == 0 {
            return Err(format!("{name} has no MTU"));
        }
        Ok(ExternalInterface {
            name: name.clone(),
            index: self.index,
            mtu: self.mtu,
            address,
            public_ip: address,
        })
    }
}

/// Go's `IsGlobalUnicast` or `IsLinkLocalUnicast`: includes private addresses, not loopback.
fn is_unicast(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast())
}

fn describe(links: &[HostLink]) -> String {
    let mut text = String::new();
    for link in links {
        let separator = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{separator}{}", link.name);
        for (address, _) in link.ipv4() {
            let _ = write!(text, " {address}");
        }
    }
    if text.is_empty() {
        text.push_str("none");
    }
    text
}

#[cfg(test)]
mod tests;
