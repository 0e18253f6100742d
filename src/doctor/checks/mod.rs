//! The checks, one file a concern: pure functions over [`super::facts::Facts`].

pub mod daemon;
pub mod datastore;
pub mod device;
pub mod files;
pub mod firewall;
pub mod leases;
pub mod machine;
pub mod peers;
pub mod port;
pub mod routes;
