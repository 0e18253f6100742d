//! uvxlan: a drop-in for flannel's vxlan backend that needs no vxlan in the kernel.

pub mod capture;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod doctor;
pub mod firewall;
pub mod host;
pub mod offload;
pub mod route;
pub mod subnet;
pub mod sys;
pub mod testbed;
pub mod wire;
