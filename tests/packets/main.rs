//! The packet loop in this process, in network namespaces, with the kernel's vxlan and itself as
//! peers.

#[path = "../support/mod.rs"]
mod support;

mod kernel_wire;
mod large_packets;
mod loops;
mod testbed;
