//! Commands that build two hosts in network namespaces: the demo and the benchmark.

pub mod bench;
mod cleanup;
pub mod demo;
mod namespaces;
