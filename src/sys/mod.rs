//! The kernel edge: the only place with `unsafe`.

pub mod netns;
pub mod poll;
pub mod simd;
pub mod tun;
pub mod udp;
