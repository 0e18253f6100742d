//! Hosts and containers in network namespaces, and traffic between them: for the demo, the bench and the tests.
//!
//! Everything here is anonymous: when the values are dropped, or the process dies, the
//! kernel removes namespaces and devices. No `ip` program is needed.
#![forbid(unsafe_code)]

pub mod daemon;
pub mod kernel_vxlan;
pub mod namespace;
pub mod nic;
pub mod pair;
pub mod skipping;
pub mod topology;
pub mod traffic;

pub use daemon::{DaemonProcess, SubnetEnv};
pub use kernel_vxlan::{KernelVxlan, kernel_has_vxlan};
pub use namespace::{Node, TestbedError, available};
pub use nic::NicClass;
pub use pair::Pair;
pub use skipping::skipped;
pub use topology::{Container, Host, Topology};
