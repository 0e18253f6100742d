//! Sysctls for IP forwarding, and for iptables on bridged packets.

use std::fs::{self, OpenOptions};
use std::io;

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const BRIDGE_CALLS: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// The result of [`ensure`].
#[derive(Debug)]
pub(crate) enum Forwarding {
    /// It was on already.
    On,
    SwitchedOn,
    /// It cannot be switched on.
    Off(io::Error),
}

/// Switches `net.ipv4.ip_forward` on: without it no packet passes between containers and the
/// overlay.
pub(crate) fn ensure() -> Forwarding {
    if is_on() {
        return Forwarding::On;
    }
    match fs::write(IP_FORWARD, "1") {
        Ok(()) => Forwarding::SwitchedOn,
        Err(error) => Forwarding::Off(error),
    }
}

/// Reverts [`Forwarding::SwitchedOn`].
pub(crate) fn switch_off() -> io::Result<()> {
    fs::write(IP_FORWARD, "0")
}

/// Whether [`ensure`] would succeed; changes nothing.
pub(crate) fn can_ensure() -> io::Result<()> {
    if is_on() {
        return Ok(());
    }
    OpenOptions::new().write(true).open(IP_FORWARD).map(drop)
}

fn is_on() -> bool {
    fs::read_to_string(IP_FORWARD).is_ok_and(|text| text.trim() == "1")
}

/// Whether bridged packets pass iptables, as Docker and Kubernetes expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BridgeNetfilter {
    On,
    /// `net.bridge.bridge-nf-call-iptables` is off.
    Off,
    /// `br_netfilter` is not loaded.
    NotLoaded,
}

pub(crate) fn bridge_netfilter() -> BridgeNetfilter {
    match fs::read_to_string(BRIDGE_CALLS) {
        Ok(text) if text.trim() == "0" => BridgeNetfilter::Off,
        Ok(_) => BridgeNetfilter::On,
        Err(_) => BridgeNetfilter::NotLoaded,
    }
}
