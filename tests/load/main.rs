//! Floods, large clusters and memory. Each test has the machine to itself.

#[path = "../support/mod.rs"]
mod support;

mod alone;
mod daemon_scale;
mod empty_datagrams;
mod flood;
mod lease_scale;
mod memory;
