//! Whether the host forwards packets, and whether bridged packets pass the rules.

use std::fs::{self, OpenOptions};
use std::io;

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const BRIDGE_CALLS: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// What became of `net.ipv4.ip_forward`.
#[derive(Debug)]
pub enum Forwarding {
    /// It was on.
    On,
    /// It was off, and is on now.
    SwitchedOn,
    /// It is off, and cannot be switched on.
    Off(io::Error),
}

/// Switches forwarding on: without it no packet passes between containers and the overlay.
#[must_use]
pub fn ensure() -> Forwarding {
    if is_on() {
        return Forwarding::On;
    }
    match fs::write(IP_FORWARD, "1") {
        Ok(()) => Forwarding::SwitchedOn,
        Err(error) => Forwarding::Off(error),
    }
}

/// Takes back what [`Forwarding::SwitchedOn`] stands for.
///
/// # Errors
/// What the kernel says.
pub fn switch_off() -> io::Result<()> {
    fs::write(IP_FORWARD, "0")
}

/// Whether [`ensure`] can do what it should; nothing is changed.
///
/// # Errors
/// Why not.
pub fn can_ensure() -> io::Result<()> {
    if is_on() {
        return Ok(());
    }
    OpenOptions::new().write(true).open(IP_FORWARD).map(drop)
}

fn is_on() -> bool {
    fs::read_to_string(IP_FORWARD).is_ok_and(|text| text.trim() == "1")
}

/// Whether packets that a bridge switches pass iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bridged {
    /// They do, as Docker and Kubernetes expect.
    Filtered,
    /// `net.bridge.bridge-nf-call-iptables` is off.
    SwitchedOff,
    /// `br_netfilter` is not loaded.
    NoModule,
}

/// Reads it.
#[must_use]
pub fn bridged() -> Bridged {
    match fs::read_to_string(BRIDGE_CALLS) {
        Ok(text) if text.trim() == "0" => Bridged::SwitchedOff,
        Ok(_) => Bridged::Filtered,
        Err(_) => Bridged::NoModule,
    }
}
