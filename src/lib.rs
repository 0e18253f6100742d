//! uvxlan: a drop-in for flannel's vxlan backend that needs no vxlan in the kernel.

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
