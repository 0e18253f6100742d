//! Reads and changes the network configuration of the host.
#![forbid(unsafe_code)]

pub(crate) mod echo;
pub(crate) mod forwarding;
pub mod interface;
pub mod link;
pub(crate) mod loop_check;
pub mod netlink;
pub(crate) mod port;
pub mod routes;
