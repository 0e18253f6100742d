//! The etcd stores, and the life cycle of leases, on a real etcd on loopback.

#[path = "../support/mod.rs"]
mod support;

mod lease_cli;
mod lease_faults;
mod lease_life;
mod store_auth;
mod store_v2;
mod store_v3;
