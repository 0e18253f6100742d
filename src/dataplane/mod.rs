//! The packet loop.
#![forbid(unsafe_code)]

pub mod batch;
pub mod counters;
pub mod decap;
pub mod encap;
pub mod worker;
