//! The daemon, `uvxlan run`: it starts, serves until it is stopped, and answers questions
//! meanwhile.
#![forbid(unsafe_code)]

pub mod api;
mod backoff;
pub(crate) mod failure;
pub(crate) mod instance;
pub(crate) mod log;
pub(crate) mod notify;
pub mod options;
pub(crate) mod probes;
pub(crate) mod serve;
mod sleep;
pub(crate) mod start;
pub mod state;
