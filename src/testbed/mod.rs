//! Hosts and containers in network namespaces, and traffic between them, for the demo, the bench
//! and the tests.
//!
//! The namespaces have no names: when the values are dropped, or the process dies, the kernel
//! removes them with their devices. No `ip` program is needed.
#![forbid(unsafe_code)]

mod daemon;
mod host;
mod kernel_vxlan;
mod namespace;
mod nic;
pub(crate) mod pair;
mod topology;
pub mod traffic;

pub use daemon::{DaemonProcess, SubnetEnv};
pub use host::{Container, Host, UNDERLAY_DEVICE};
pub use kernel_vxlan::{KernelVxlan, kernel_has_vxlan};
pub use namespace::{Node, TestbedError, available};
pub use nic::NicClass;
pub use pair::Pair;
pub use topology::Topology;
