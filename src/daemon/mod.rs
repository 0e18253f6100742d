//! Wiring and life of the daemon.
#![forbid(unsafe_code)]

pub mod api;
pub mod failure;
pub mod log;
pub mod notify;
pub mod options;
pub mod probes;
pub mod serve;
pub mod start;
pub mod state;
