//! What a person types and reads.
#![forbid(unsafe_code)]

pub mod args;
pub mod demo;
pub mod docker_opts;
pub mod flannel_args;
pub mod run;
