//! From the TUN device to the peers.

pub mod batch;
pub(super) mod encap;
mod pmtu_cache;
pub(super) mod transmit;
