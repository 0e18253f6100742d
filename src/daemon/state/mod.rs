//! The files that the daemon keeps: its own state, the subnet file and the offline cache.

pub(crate) mod atomic_file;
pub(crate) mod files;
pub(crate) mod offline_cache;
pub(crate) mod state_file;
pub mod subnet_env;
