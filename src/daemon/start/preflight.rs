//! Second phase of a start: checks what it needs before anything is changed on the host or in the
//! datastore. A start that cannot succeed leaves nothing behind, and reports everything missing at
//! once.

use std::fs::OpenOptions;
use std::io;
use std::net::Ipv4Addr;

use super::discover::{Discovered, receive_address};
use super::inputs::Inputs;
use crate::daemon::failure::Failure;
use crate::daemon::serve::rules::FirewallSetup;
use crate::host::forwarding::{self, BridgeNetfilter};
use crate::host::port;
use crate::sys::privileges::{self, Capability};
use crate::sys::tun::TunError;

const CLONE_DEVICE: &str = "/dev/net/tun";

/// Fails if something is missing; several things are logged one by one, each with its remedy.
/// What the overlay works without is only logged.
pub(super) fn check(inputs: &Inputs<'_>, host: &Discovered) -> Result<(), Failure> {
    warn_of_limitations(&host.rules);
    let mut missing = Vec::new();
    missing.extend(capability());
    missing.extend(tun());
    let address = receive_address(inputs.options, host.underlay.current());
    missing.extend(tunnel_port(address, host));
    missing.extend(host.files.unwritable());
    if missing.len() < 2 {
        return missing.pop().map_or(Ok(()), Err);
    }
    for failure in &missing {
        tracing::error!(event = "preflight", "{failure}");
    }
    Err(Failure::Several(missing))
}

fn capability() -> Option<Failure> {
    privileges::lacks(Capability::CAP_NET_ADMIN).then_some(Failure::Capability {
        name: "CAP_NET_ADMIN",
        purpose: "which the device, its routes and the rules need",
    })
}

fn tun() -> Option<Failure> {
    let opened = OpenOptions::new().read(true).write(true).open(CLONE_DEVICE);
    let source = opened.err()?;
    let tried = format!("open {CLONE_DEVICE}");
    Some(Failure::Tun(match source.kind() {
        io::ErrorKind::NotFound => TunError::NoCloneDevice,
        io::ErrorKind::PermissionDenied => TunError::Permission { tried, source },
        // ENXIO, ENODEV: the device node exists, the driver does not.
        _ if matches!(source.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => {
            TunError::NoCloneDevice
        }
        _ => TunError::Other { tried, source },
    }))
}

/// Whether the port is in use, unless by the kernel device that is taken over: its socket goes
/// with it.
fn tunnel_port(address: Ipv4Addr, host: &Discovered) -> Option<Failure> {
    let port = host.network.config.backend.port;
    match port::is_taken(address, port) {
        Ok(false) => return None,
        Ok(true) => {}
        Err(source) => return Some(Failure::Port { port, source }),
    }
    let holders = port::udp_holders(address, port);
    let program = holders.iter().find(|holder| holder.pid.is_some());
    // A device that is down has no socket. Devices with the same port share one.
    let mut kernel = host
        .links
        .iter()
        .filter(|link| link.vxlan_port == Some(port) && link.up);
    let (first, other) = (
        kernel.clone().next(),
        kernel.find(|link| link.name != host.device),
    );
    let holder = match (program, other, first) {
        (Some(program), ..) => program.to_string(),
        (None, Some(other), _) => format!("the kernel's vxlan device {}", other.name),
        (None, None, Some(_)) => return None,
        (None, None, None) => holders.first().map_or_else(
            || "a process that is not visible from here".to_owned(),
            ToString::to_string,
        ),
    };
    Some(Failure::PortHeld { port, holder })
}

/// Logs what will not work. It is no reason to fail: an overlay without it is better than none.
fn warn_of_limitations(rules: &FirewallSetup) {
    rules.log_missing_tool();
    if let Err(error) = forwarding::can_ensure() {
        tracing::error!(
            event = "ip_forward", %error,
            "net.ipv4.ip_forward is off and cannot be switched on, so containers reach no other host: sysctl -w net.ipv4.ip_forward=1"
        );
    }
    if !rules.uses_iptables() {
        return;
    }
    match forwarding::bridge_netfilter() {
        BridgeNetfilter::On => {}
        BridgeNetfilter::NotLoaded => tracing::warn!(
            event = "br_netfilter",
            "bridged packets do not pass iptables; Docker and Kubernetes expect that: modprobe br_netfilter"
        ),
        BridgeNetfilter::Off => tracing::warn!(
            event = "br_netfilter",
            "bridged packets do not pass iptables; Docker and Kubernetes expect that: sysctl -w net.bridge.bridge-nf-call-iptables=1"
        ),
    }
}
