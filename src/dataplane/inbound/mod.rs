//! From the tunnel port to the TUN device.

pub mod decap;
pub mod deliver;
pub mod header_checks;
pub mod probes;
