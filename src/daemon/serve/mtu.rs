//! The MTU of the overlay device, and bridges that do not respect it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::Ipv4Net;

use crate::daemon::failure::Failure;
use crate::host::interface::ExternalInterface;
use crate::host::netlink::{AddressInfo, LinkInfo, Netlink};
use crate::subnet::config::NetworkConfig;
use crate::wire::vxlan::OVERHEAD;

/// What every IPv4 link must carry.
const MIN_MTU: u32 = 576;

/// MTU of the overlay device: that of the network config or of the external interface, less the
/// encapsulation overhead.
pub(crate) fn device_mtu(
    config: &NetworkConfig,
    external: &ExternalInterface,
) -> Result<u16, Failure> {
    let outer = config.backend.mtu.map_or(external.mtu, u32::from);
    let inner = outer.min(65_535).saturating_sub(u32::from(OVERHEAD));
    match u16::try_from(inner) {
        Ok(mtu) if inner >= MIN_MTU => Ok(mtu),
        _ => Err(Failure::Mtu {
            interface: external.name.clone(),
            address: external.address,
            mtu: outer,
        }),
    }
}

/// Warns about bridges in our subnet (Docker's) with a larger MTU than the device: their
/// containers send packets that do not fit. Docker starts after us, so the check is repeated;
/// each bridge is named once for each pair of MTUs. A bridge without ports is ignored: it has
/// the kernel's default MTU whatever Docker was told, and adopts that of its ports later.
#[derive(Debug, Default)]
pub(crate) struct BridgeMtus {
    /// Name, MTU and device MTU.
    too_large: BTreeSet<(String, u32, u16)>,
}

impl BridgeMtus {
    pub(crate) async fn check(&mut self, netlink: &Netlink, subnet: Ipv4Net, device_mtu: u16) {
        let (Ok(links), Ok(addresses)) = (netlink.links().await, netlink.addresses(None).await)
        else {
            return;
        };
        let too_large: BTreeSet<_> = larger_bridges(&links, &addresses, subnet, device_mtu)
            .map(|link| (link.name.clone(), link.mtu, device_mtu))
            .collect();
        for (bridge, bridge_mtu, device_mtu) in too_large.difference(&self.too_large) {
            tracing::warn!(
                event = "bridge_mtu",
                bridge,
                bridge_mtu,
                device_mtu,
                "a bridge in our subnet has a larger MTU than the tunnel: restart docker with the \
                 MTU of the subnet file (--mtu)"
            );
        }
        self.too_large = too_large;
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
