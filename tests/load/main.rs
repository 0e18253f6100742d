//! Floods, large clusters and memory. Floods have the machine to themselves.

#[path = "../support/mod.rs"]
mod support;

mod daemon_scale;
mod empty_datagrams;
mod flood;
mod lease_scale;
mod memory;
