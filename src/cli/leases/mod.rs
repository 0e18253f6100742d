//! Commands that look into the datastore, or change it.

pub mod config;
pub mod lease;
pub mod store;
