//! Large packets through our packet loop: what arrives is what was sent, whatever the NICs
//! leave to the host, whatever is switched off, and however bad the underlay is.

#[path = "support/wire.rs"]
mod wire;

#[path = "large_packets/bad_underlay.rs"]
mod bad_underlay;
#[path = "large_packets/nics.rs"]
mod nics;
#[path = "large_packets/path_mtu.rs"]
mod path_mtu;
