//! Whether the host forwards packets, and whether bridged packets pass the rules.

use std::fs;
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
    match fs::read_to_string(IP_FORWARD) {
        Ok(text) if text.trim() == "1" => Forwarding::On,
        _ => match fs::write(IP_FORWARD, "1") {
            Ok(()) => Forwarding::SwitchedOn,
            Err(error) => Forwarding::Off(error),
        },
    }
}

/// Whether packets that a bridge switches pass iptables, as Docker and Kubernetes expect
/// (`br_netfilter` is loaded).
#[must_use]
pub fn bridges_are_filtered() -> bool {
    fs::metadata(BRIDGE_CALLS).is_ok()
}
