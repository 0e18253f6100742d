//! What this program does to the host, and puts back.
#![forbid(unsafe_code)]

pub mod echo;
pub mod forwarding;
pub mod interface;
pub mod link;
pub mod loop_check;
pub mod netlink;
pub mod port;
pub mod routes;
