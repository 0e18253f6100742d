//! The kernel edge: the only place with `unsafe`.

pub mod ethtool;
pub mod kernel;
pub mod netns;
pub mod poll;
pub mod privileges;
pub mod process;
pub mod signals;
pub mod simd;
pub mod statistics;
pub mod tun;
pub mod udp;
