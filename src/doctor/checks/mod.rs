//! The checks, one file for each concern: pure functions of [`super::facts::Facts`].

pub(super) mod daemon;
pub(super) mod datastore;
pub(super) mod device;
pub(super) mod files;
pub(super) mod firewall;
pub(super) mod leases;
pub(super) mod machine;
pub(super) mod peers;
pub(super) mod port;
pub(super) mod routes;
