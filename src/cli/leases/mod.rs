//! Commands that read and change the datastore.

pub(crate) mod config;
pub(crate) mod lease;
pub(crate) mod store;
