//! Configures the overlay device `flannel.<VNI>`, a TUN device, and replaces flannel's device of
//! that name.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use ipnet::Ipv4Net;

use super::netlink::{AddressInfo, LinkInfo, Netlink, NetlinkError};
use crate::wire::MacAddr;

/// Per-device IPv6 sysctls, in the namespace of the calling thread.
const IPV6_SETTINGS: &str = "/proc/sys/net/ipv6/conf";

/// Why the overlay device could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A netlink request failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Another program's device has our name.
    #[error(
        "the device {name} exists and is of kind {kind}, neither a TUN device of ours nor \
         flannel's vxlan; remove it (`ip link delete {name}`) or choose another VNI"
    )]
    NameTaken {
        /// Name of the device.
        name: String,
        /// Its kind, as `ip -d link` shows it.
        kind: String,
    },
}

/// The settings of the overlay device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSettings {
    /// MTU in bytes: that of the external interface less 50.
    pub mtu: u32,
    /// The lease's network address, set with prefix length 32 as in flannel.
    pub address: Ipv4Addr,
    /// The overlay network. Other addresses in it are removed from the device, those outside
    /// are left alone.
    pub network: Ipv4Net,
    /// Transmit queue length in packets; `None` keeps the kernel's 500.
    pub tx_queue_len: Option<u32>,
}

/// Deletes a kernel vxlan device called `name`, and returns its MAC address, which the peers
/// know.
///
/// flannel's device holds not only the name but also the UDP port. Its routes are deleted with
/// it. A TUN device of that name is left as it is.
///
/// # Errors
///
/// [`LinkError::NameTaken`] for a device of any other kind, which is left alone.
pub async fn take_over_kernel_vxlan(
    netlink: &Netlink,
    name: &str,
) -> Result<Option<MacAddr>, LinkError> {
    let Some(link) = netlink.link_by_name(name).await? else {
        return Ok(None);
    };
    match device_kind(&link) {
        DeviceKind::Tun => Ok(None),
        DeviceKind::KernelVxlan => {
            netlink.delete_link(link.index).await?;
            Ok(link.mac)
        }
        DeviceKind::Other(kind) => Err(LinkError::NameTaken {
            name: link.name,
            kind,
        }),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum DeviceKind {
    Tun,
    KernelVxlan,
    Other(String),
}

fn device_kind(link: &LinkInfo) -> DeviceKind {
    match (link.kind.as_deref(), link.mac) {
        (Some("vxlan"), _) => DeviceKind::KernelVxlan,
        // A TAP is of kind `tun` too, but has a link-layer address.
        (Some("tun"), None) => DeviceKind::Tun,
        (Some("tun"), Some(_)) => DeviceKind::Other("tap".into()),
        (Some(kind), _) => DeviceKind::Other(kind.into()),
        (None, _) => DeviceKind::Other("hardware".into()),
    }
}

/// Sets the MTU and the address of the overlay device, and sets it up. Returns whether anything
/// had to be changed.
///
/// To be called on a thread in the network namespace of the device: besides netlink it writes
/// two sysctls, without which the kernel sends router solicitations into the overlay.
///
/// # Errors
///
/// If the device is gone or a request is refused. Sysctls that cannot be written are only
/// logged: a host without IPv6 has none, and some containers mount them read-only.
pub async fn configure(
    netlink: &Netlink,
    ifindex: u32,
    settings: DeviceSettings,
) -> Result<bool, LinkError> {
    let mut changed = false;
    let link = netlink.link_by_index(ifindex).await?;
    let link = link.ok_or_else(|| NetlinkError::Missing(format!("network device {ifindex}")))?;
    if link.mtu != settings.mtu {
        netlink.set_mtu(ifindex, settings.mtu).await?;
        changed = true;
    }
    if let Some(length) = settings.tx_queue_len
        && length != link.tx_queue_len
    {
        netlink.set_tx_queue_len(ifindex, length).await?;
        changed = true;
    }
    if !link.up {
        // Before the device comes up: that is when the kernel makes a link-local address.
        disable_ipv6_autoconf(&link.name);
    }
    changed |= ensure_address(netlink, ifindex, settings).await?;
    if !link.up {
        netlink.set_up(ifindex, true).await?;
        changed = true;
    }
    Ok(changed)
}

async fn ensure_address(
    netlink: &Netlink,
    ifindex: u32,
    settings: DeviceSettings,
) -> Result<bool, NetlinkError> {
    let present = netlink.addresses(Some(ifindex)).await?;
    let (stale, has_wanted) = sort_addresses(&present, settings);
    let changed = !stale.is_empty() || !has_wanted;
    for (address, prefix_len) in stale {
        match netlink.delete_address(ifindex, address, prefix_len).await {
            // Deleted since, or together with its primary address.
            Err(error) if error.is_missing() => {}
            other => other?,
        }
        tracing::info!(event = "address_removed", %address, prefix_len, ifindex, "removed an old address from the device");
    }
    if !has_wanted {
        match netlink.add_address(ifindex, settings.address, 32).await {
            Err(error) if error.is_exists() => {}
            other => other?,
        }
    }
    Ok(changed)
}

/// The addresses to remove, and whether the wanted one is present (flannel's
/// `EnsureV4AddressOnLink` since v0.14).
fn sort_addresses(
    present: &[AddressInfo],
    settings: DeviceSettings,
) -> (Vec<(Ipv4Addr, u8)>, bool) {
    let mut stale = Vec::new();
    let mut has_wanted = false;
    for entry in present {
        let IpAddr::V4(address) = entry.address else {
            continue;
        };
        if address == settings.address && entry.prefix_len == 32 {
            has_wanted = true;
        } else if settings.network.contains(&address) {
            stale.push((address, entry.prefix_len));
        }
    }
    (stale, has_wanted)
}

/// Ignores router advertisements, as flannel does, and assigns no link-local address, whose
/// solicitations and listener reports would reach nobody.
fn disable_ipv6_autoconf(device: &str) {
    for (setting, value) in [("accept_ra", "0"), ("addr_gen_mode", "1")] {
        let path = Path::new(IPV6_SETTINGS).join(device).join(setting);
        // A write to /proc does not block, so async code may do it.
        match std::fs::write(&path, value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(event = "sysctl_failed", path = %path.display(), %error, "cannot write a sysctl");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(address: &str) -> DeviceSettings {
        DeviceSettings {
            mtu: 1450,
            address: address.parse().unwrap(),
            network: "10.3.0.0/16".parse().unwrap(),
            tx_queue_len: None,
        }
    }

    fn present(text: &str) -> AddressInfo {
        let net: ipnet::IpNet = text.parse().unwrap();
        AddressInfo {
            ifindex: 7,
            address: net.addr(),
            prefix_len: net.prefix_len(),
            scope: 0,
            deprecated: false,
            permanent: true,
            temporary: false,
        }
    }

    #[test]
    fn only_other_addresses_inside_the_network_go() {
        let present = [
            "10.3.7.0/32",
            "10.3.9.0/32",
            "10.3.9.0/24",
            "169.254.4.4/16",
            "10.4.0.1/32",
            "fe80::1/64",
        ]
        .map(present);
        let (stale, has_wanted) = sort_addresses(&present, settings("10.3.9.0"));
        let expected = [("10.3.7.0", 32), ("10.3.9.0", 24)];
        assert_eq!(stale, expected.map(|(ip, len)| (ip.parse().unwrap(), len)));
        assert!(has_wanted);
    }

    #[test]
    fn a_new_device_does_not_have_the_address() {
        assert_eq!(sort_addresses(&[], settings("10.3.9.0")), (vec![], false));
    }

    #[test]
    fn kinds_of_devices_are_distinguished() {
        let link = |kind: Option<&str>, mac| LinkInfo {
            index: 3,
            name: "flannel.1".into(),
            mtu: 1450,
            kind: kind.map(Into::into),
            vxlan_port: None,
            mac,
            up: true,
            flags: 0,
            master: None,
            tx_queue_len: 500,
        };
        let mac = Some(MacAddr([2, 0, 0, 0, 0, 1]));
        assert_eq!(
            device_kind(&link(Some("vxlan"), mac)),
            DeviceKind::KernelVxlan
        );
        assert_eq!(device_kind(&link(Some("tun"), None)), DeviceKind::Tun);
        for (kind, mac, named) in [
            (Some("tun"), mac, "tap"),
            (Some("dummy"), mac, "dummy"),
            (None, mac, "hardware"),
        ] {
            assert_eq!(
                device_kind(&link(kind, mac)),
                DeviceKind::Other(named.into())
            );
        }
    }
}
