//! uvxlan: flannel's vxlan backend in userspace, for kernels without VXLAN.
//!
//! # A tour of the house
//!
//! The packet side needs no feature; it has no async runtime and takes no locks.
//!
//! | module | what it is |
//! |---|---|
//! | [`wire`] | headers as checked views over bytes: Ethernet, IP, TCP, UDP, ICMP, VXLAN |
//! | [`offload`] | pure: cuts super-packets into segments, coalesces segments of a flow |
//! | [`route`] | the lock-free table from a destination's subnet to its peer |
//! | [`sys`] | the kernel edge, and the only `unsafe`: TUN, batched UDP, namespaces, privileges |
//! | [`dataplane`] | the packet loop: one thread per TUN queue |
//!
//! The feature `daemon`, on by default, adds the control side: `subnet` (leases and their
//! datastores), `host` and `firewall` (what is set up on the host), `daemon` (start, main loop,
//! status, probes), `control` (the control protocol), `doctor`, `capture`, `cli`, and `testbed`
//! (hosts in network namespaces for demo, benchmark and tests).
//!
//! # The path of a packet
//!
//! [`dataplane::outbound`]: `encap` reads a packet from the device, looks up the peer in
//! [`route::table`], and puts the encapsulation before it; [`dataplane::outbound::batch`] groups
//! datagrams that one system call can send, and `transmit` sends them.
//!
//! [`dataplane::inbound`]: `decap` receives a batch, [`dataplane::inbound::header_checks`]
//! and [`dataplane::ingress_policy`] decide what may pass, and [`dataplane::inbound::deliver`]
//! merges segments and writes to the device. Every packet that does not pass is counted under
//! one of [`dataplane::counters::Counter`].
//!
//! # The path of a lease
//!
//! An event from `subnet::store` is checked by `subnet::validate` and becomes a change to the
//! set of peers in `subnet::manager`. The daemon publishes a new [`route`] snapshot to the
//! packet threads and then sets the kernel's routes.

#[cfg(feature = "daemon")]
pub mod capture;
#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod control;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod dataplane;
#[cfg(feature = "daemon")]
pub mod doctor;
#[cfg(feature = "daemon")]
pub(crate) mod firewall;
#[cfg(feature = "daemon")]
pub mod host;
pub mod offload;
pub mod route;
#[cfg(feature = "daemon")]
pub mod subnet;
pub mod sys;
#[cfg(feature = "daemon")]
pub mod testbed;
pub mod wire;
