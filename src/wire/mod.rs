//! Bytes on the wire: views over them, and nothing else.
//!
//! No file here knows sockets, files or clocks, allocates, or uses `unsafe`; everything
//! here is fuzzed. Whoever reads outside bytes gets `Option` or an error, never a panic.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod ethernet;
pub mod flow;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod probe;
pub mod tcp;
pub mod udp;
pub mod vnet_hdr;
pub mod vxlan;

pub use ethernet::mac::MacAddr;
pub use vxlan::vni::Vni;
