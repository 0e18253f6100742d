//! The daemon, `uvxlan run`: it starts, serves until it is stopped, and answers questions
//! meanwhile.
#![forbid(unsafe_code)]

pub mod api;
mod backoff;
pub mod failure;
pub mod instance;
pub mod log;
pub mod notify;
pub mod options;
pub mod probes;
pub mod serve;
pub mod start;
pub mod state;
