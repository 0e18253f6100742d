//! What the daemon keeps on disk: its own state, the subnet file and the offline cache.

pub(crate) mod atomic_file;
pub mod files;
pub mod memory;
pub mod offline_cache;
pub mod state_file;
pub mod subnet_env;
