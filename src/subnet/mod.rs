//! Leases: what flannel calls the subnet manager.
#![forbid(unsafe_code)]

pub mod allocate;
pub mod config;
pub mod key;
pub mod lease;
pub mod manager;
pub mod store;
pub mod validate;
