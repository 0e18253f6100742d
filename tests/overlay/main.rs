//! Daemons on several hosts with their datastore, and containers that reach each other.

#[path = "../support/mod.rs"]
mod support;

mod cluster;
mod direct_routing;
mod kernel_peer;
mod lease_identity;
mod peer_check;
mod probes;
mod underlay;
