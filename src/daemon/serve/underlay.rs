//! Follows the interface to the other hosts: its MTU, and its address where the old one is
//! gone from the host.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::Ipv4Net;

use crate::daemon::failure::Failure;
use crate::host::interface::{self, ExternalInterface, Selection, Snapshot};
use crate::host::netlink::{AddressInfo, LinkInfo, Netlink, NetlinkError};
use crate::subnet::config::NetworkConfig;
use crate::wire::vxlan::OVERHEAD;

/// Smallest device MTU: what every IPv4 link must carry.
const SMALLEST_MTU: u32 = 576;

/// MTU of the overlay device: that of the network config, or of the interface, less what the
/// encapsulation takes.
///
/// # Errors
/// When nothing useful is left.
pub fn device_mtu(config: &NetworkConfig, external: &ExternalInterface) -> Result<u16, Failure> {
    let outer = config.backend.mtu.map_or(external.mtu, u32::from);
    let inner = outer.min(65_535).saturating_sub(u32::from(OVERHEAD));
    match u16::try_from(inner) {
        Ok(mtu) if inner >= SMALLEST_MTU => Ok(mtu),
        _ => Err(Failure::Mtu {
            interface: external.name.clone(),
            address: external.address,
            mtu: outer,
        }),
    }
}

/// Says so where a bridge of our subnet (docker's) has a larger MTU than the device: its
/// containers send packets that do not fit. docker starts after us, so it is looked for again
/// and again, and said once of each bridge and pair of MTUs. A bridge that nobody is joined to
/// has the kernel's MTU whatever docker was told, and takes that of its ports later.
#[derive(Debug, Default)]
pub struct Bridges(BTreeSet<(String, u32, u16)>);

impl Bridges {
    /// Looks.
    pub async fn look(&mut self, netlink: &Netlink, subnet: Ipv4Net, mtu: u16) {
        let (Ok(links), Ok(addresses)) = (netlink.links().await, netlink.addresses(None).await)
        else {
            return;
        };
        let larger = larger_bridges(&links, &addresses, subnet, mtu);
        let larger: BTreeSet<_> = larger
            .map(|link| (link.name.clone(), link.mtu, mtu))
            .collect();
        for (bridge, bridge_mtu, device_mtu) in larger.difference(&self.0) {
            tracing::warn!(
                event = "bridge_mtu",
                bridge,
                bridge_mtu,
                device_mtu,
                "a bridge of our subnet has a larger MTU than the tunnel takes: restart docker \
                 with the subnet file's MTU (--mtu)"
            );
        }
        self.0 = larger;
    }
}

fn larger_bridges<'a>(
    links: &'a [LinkInfo],
    addresses: &[AddressInfo],
    subnet: Ipv4Net,
    mtu: u16,
) -> impl Iterator<Item = &'a LinkInfo> {
    let ours = move |link: &LinkInfo| {
        addresses.iter().any(|entry| {
            let inside = matches!(entry.address, IpAddr::V4(ip) if subnet.contains(&ip));
            entry.ifindex == link.index && inside
        })
    };
    links.iter().filter(move |link| {
        link.kind.as_deref() == Some("bridge")
            && link.mtu > u32::from(mtu)
            && links.iter().any(|port| port.master == Some(link.index))
            && ours(link)
    })
}

/// The interface in use, and how it was chosen.
#[derive(Debug)]
pub struct Underlay {
    selection: Selection,
    current: ExternalInterface,
}

impl Underlay {
    /// Begins with what was chosen at start.
    #[must_use]
    pub const fn new(selection: Selection, current: ExternalInterface) -> Self {
        Self { selection, current }
    }

    /// Looks at the host; what is different now, as it was before.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn look(
        &mut self,
        netlink: &Netlink,
    ) -> Result<Option<ExternalInterface>, NetlinkError> {
        let snapshot = interface::snapshot(netlink, &self.selection).await?;
        let now = successor(&self.current, &self.selection, &snapshot);
        Ok((now != self.current).then(|| std::mem::replace(&mut self.current, now)))
    }

    /// The interface in use.
    #[must_use]
    pub const fn current(&self) -> &ExternalInterface {
        &self.current
    }
}

/// What to use from now on. While the address is on the host it stays ours, whatever else
/// the rules of the start would choose by now: a default route that moved to another link
/// for a while must not move the tunnels. Without any choice, nothing changes.
fn successor(
    current: &ExternalInterface,
    selection: &Selection,
    snapshot: &Snapshot,
) -> ExternalInterface {
    let holder = snapshot.links.iter().find(|link| {
        let mut addresses = link.addresses.iter();
        addresses.any(|entry| entry.address == current.address)
    });
    match holder {
        Some(link) => ExternalInterface {
            name: link.name.clone(),
            index: link.index,
            mtu: link.mtu,
            ..current.clone()
        },
        None => interface::choose(selection, snapshot).unwrap_or_else(|_| current.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::host::interface::HostLink;

    const OLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
    const NEW: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

    fn link(index: u32, mtu: u32, addresses: &[Ipv4Addr]) -> HostLink {
        let address = |address: &Ipv4Addr| AddressInfo {
            ifindex: index,
            address: IpAddr::V4(*address),
            prefix_len: 24,
            scope: 0,
            deprecated: false,
            permanent: true,
            temporary: false,
        };
        HostLink {
            index,
            name: format!("eth{index}"),
            mtu,
            addresses: addresses.iter().map(address).collect(),
        }
    }

    fn snapshot(links: Vec<HostLink>, default_route: Option<u32>) -> Snapshot {
        Snapshot {
            links,
            default_route,
            can_reach: None,
        }
    }

    fn start() -> ExternalInterface {
        let host = snapshot(vec![link(1, 1500, &[OLD])], Some(1));
        interface::choose(&Selection::default(), &host).unwrap()
    }

    #[test]
    fn an_mtu_is_followed() {
        let host = snapshot(vec![link(1, 1400, &[OLD])], Some(1));
        let now = successor(&start(), &Selection::default(), &host);
        assert_eq!((now.mtu, now.address), (1400, OLD));
    }

    #[test]
    fn an_address_that_is_there_is_kept_wherever_the_default_route_goes() {
        let links = vec![link(1, 1500, &[OLD]), link(2, 1420, &[NEW])];
        let now = successor(&start(), &Selection::default(), &snapshot(links, Some(2)));
        assert_eq!(now, start());
    }

    #[test]
    fn an_address_that_is_gone_is_replaced_as_soon_as_there_is_another() {
        let empty = snapshot(vec![link(1, 1500, &[])], Some(1));
        assert_eq!(successor(&start(), &Selection::default(), &empty), start());
        let host = snapshot(vec![link(1, 1500, &[NEW])], Some(1));
        let now = successor(&start(), &Selection::default(), &host);
        assert_eq!((now.address, now.public_ip), (NEW, NEW));
    }

    #[test]
    fn a_public_address_that_was_given_stays() {
        let given = Ipv4Addr::new(203, 0, 113, 1);
        let selection = Selection {
            interfaces: vec!["eth1".into()],
            public_ip: Some(given),
            ..Selection::default()
        };
        let before = ExternalInterface {
            public_ip: given,
            ..start()
        };
        let host = snapshot(vec![link(1, 1500, &[NEW])], Some(1));
        let now = successor(&before, &selection, &host);
        assert_eq!((now.address, now.public_ip), (NEW, given));
    }
}
