//! The kernel interface: the only place with `unsafe`. It imports nothing else of this crate.

pub mod ethtool;
pub mod kernel;
pub mod netns;
pub mod poll;
pub mod privileges;
pub mod process;
pub(crate) mod signals;
pub(crate) mod simd;
pub(crate) mod statistics;
pub mod tun;
pub mod udp;
