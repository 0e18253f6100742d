//! What must be there, looked at before anything is changed on the host or in the datastore:
//! a start that cannot succeed leaves nothing behind, and says all that is missing at once.

use std::fs::OpenOptions;
use std::io;
use std::net::Ipv4Addr;

use crate::daemon::failure::Failure;
use crate::daemon::serve::rules::FirewallSetup;
use crate::daemon::state::files::Files;
use crate::host::forwarding::{self, Bridged};
use crate::host::netlink::LinkInfo;
use crate::host::port;
use crate::sys::privileges::{self, Capability};
use crate::sys::tun::TunError;

const CLONE_DEVICE: &str = "/dev/net/tun";

/// What a start needs.
#[derive(Debug, Clone, Copy)]
pub struct Needs<'a> {
    /// Where tunnels are received.
    pub address: Ipv4Addr,
    /// Their UDP port.
    pub port: u16,
    /// Name of the device; one of the kernel's vxlan will be taken over.
    pub device: &'a str,
    /// The devices that are there.
    pub links: &'a [LinkInfo],
    /// What will be written.
    pub files: &'a Files,
    /// The rules that will be made.
    pub(crate) rules: &'a FirewallSetup,
}

/// Checks it. What the daemon can do without is logged, with the remedy, and so is each of
/// several things that it cannot do without.
///
/// # Errors
/// What is missing.
pub fn check(needs: &Needs<'_>) -> Result<(), Failure> {
    tell_of_drawbacks(needs.rules);
    let mut missing = Vec::new();
    missing.extend(capability());
    missing.extend(tun());
    missing.extend(tunnel_port(needs));
    missing.extend(needs.files.unwritable());
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
        purpose: "to make the device, its routes and the rules",
    })
}

fn tun() -> Option<Failure> {
    let opened = OpenOptions::new().read(true).write(true).open(CLONE_DEVICE);
    let source = opened.err()?;
    let tried = format!("open {CLONE_DEVICE}");
    Some(Failure::Tun(match source.kind() {
        io::ErrorKind::NotFound => TunError::NoCloneDevice,
        io::ErrorKind::PermissionDenied => TunError::Permission { tried, source },
        // ENXIO, ENODEV: the node is there, the driver is not.
        _ if matches!(source.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => {
            TunError::NoCloneDevice
        }
        _ => TunError::Other { tried, source },
    }))
}

/// Somebody else's port, unless it is that of the kernel device we take over: its socket goes
/// with it.
fn tunnel_port(needs: &Needs<'_>) -> Option<Failure> {
    let port = needs.port;
    match port::is_taken(needs.address, port) {
        Ok(false) => return None,
        Ok(true) => {}
        Err(source) => return Some(Failure::Port { port, source }),
    }
    let holders = port::udp_holders(needs.address, port);
    let program = holders.iter().find(|holder| holder.pid.is_some());
    // A device that is down has no socket. Several of one port share theirs.
    let mut kernel = needs
        .links
        .iter()
        .filter(|link| link.vxlan_port == Some(port) && link.up);
    let (first, other) = (
        kernel.clone().next(),
        kernel.find(|link| link.name != needs.device),
    );
    let holder = match (program, other, first) {
        (Some(program), ..) => program.to_string(),
        (None, Some(other), _) => format!("the kernel's vxlan device {}", other.name),
        (None, None, Some(_)) => return None,
        (None, None, None) => holders.first().map_or_else(
            || "somebody who cannot be seen from here".to_owned(),
            ToString::to_string,
        ),
    };
    Some(Failure::PortHeld { port, holder })
}

/// What costs something, and not the overlay: containers that reach each other are worth more
/// than none.
fn tell_of_drawbacks(rules: &FirewallSetup) {
    rules.log_missing_tool();
    if let Err(error) = forwarding::can_ensure() {
        tracing::error!(
            event = "ip_forward", %error,
            "net.ipv4.ip_forward is off and cannot be switched on, so containers reach nobody: sysctl -w net.ipv4.ip_forward=1"
        );
    }
    if !rules.uses_iptables() {
        return;
    }
    match forwarding::bridged() {
        Bridged::Filtered => {}
        Bridged::NoModule => tracing::warn!(
            event = "br_netfilter",
            "bridged packets do not pass iptables; Docker and Kubernetes expect that: modprobe br_netfilter"
        ),
        Bridged::SwitchedOff => tracing::warn!(
            event = "br_netfilter",
            "bridged packets do not pass iptables; Docker and Kubernetes expect that: sysctl -w net.bridge.bridge-nf-call-iptables=1"
        ),
    }
}
