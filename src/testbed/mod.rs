//! Hosts and containers in network namespaces, and traffic between them: for the demo, the bench and the tests.
#![forbid(unsafe_code)]

pub mod namespace;
pub mod topology;
pub mod traffic;
