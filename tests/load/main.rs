//! Floods, large clusters and memory: these tests measure, so each runs alone.

#[path = "../support/mod.rs"]
mod support;

mod daemon_scale;
mod flood;
mod lease_scale;
mod memory;
