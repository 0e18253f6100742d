//! Follows changes of the external interface: its MTU, and its address once the host has lost
//! the old one.

use crate::host::interface::{self, ExternalInterface, Selection, Snapshot};
use crate::host::netlink::{Netlink, NetlinkError};

/// The external interface in use, and how it was selected.
#[derive(Debug)]
pub(crate) struct Underlay {
    selection: Selection,
    current: ExternalInterface,
}

impl Underlay {
    pub(crate) const fn new(selection: Selection, current: ExternalInterface) -> Self {
        Self { selection, current }
    }

    /// Reads the interfaces again. If anything about ours has changed, returns what it was.
    pub(crate) async fn refresh(
        &mut self,
        netlink: &Netlink,
    ) -> Result<Option<ExternalInterface>, NetlinkError> {
        let snapshot = interface::snapshot(netlink, &self.selection).await?;
        let now = reselect(&self.current, &self.selection, &snapshot);
        Ok((now != self.current).then(|| std::mem::replace(&mut self.current, now)))
    }

    pub(crate) const fn current(&self) -> &ExternalInterface {
        &self.current
    }
}

/// The interface to use from now on. As long as the host has our address we keep it, even if the
/// selection would now choose another: a default route that moves to another link for a while
/// must not move the tunnels. If nothing can be chosen, nothing changes.
fn reselect(
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
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::host::interface::HostLink;
    use crate::host::netlink::AddressInfo;

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
        let now = reselect(&start(), &Selection::default(), &host);
        assert_eq!((now.mtu, now.address), (1400, OLD));
    }

    #[test]
    fn an_address_that_is_there_is_kept_wherever_the_default_route_goes() {
        let links = vec![link(1, 1500, &[OLD]), link(2, 1420, &[NEW])];
        let now = reselect(&start(), &Selection::default(), &snapshot(links, Some(2)));
        assert_eq!(now, start());
    }

    #[test]
    fn an_address_that_is_gone_is_replaced_as_soon_as_there_is_another() {
        let empty = snapshot(vec![link(1, 1500, &[])], Some(1));
        assert_eq!(reselect(&start(), &Selection::default(), &empty), start());
        let host = snapshot(vec![link(1, 1500, &[NEW])], Some(1));
        let now = reselect(&start(), &Selection::default(), &host);
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
        let now = reselect(&before, &selection, &host);
        assert_eq!((now.address, now.public_ip), (NEW, given));
    }
}
