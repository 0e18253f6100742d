//! The lock-free route table: which subnet lies behind which peer. No I/O.
#![forbid(unsafe_code)]

pub mod peer;
pub mod publish;
mod sources;
pub mod table;
