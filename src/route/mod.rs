//! Who is where: the lock-free route table, pure.
#![forbid(unsafe_code)]

pub mod peer;
pub mod publish;
mod sources;
pub mod table;
