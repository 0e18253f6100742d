//! From the TUN device to the peers.

pub mod batch;
pub mod encap;
pub mod pmtu_cache;
pub mod transmit;
