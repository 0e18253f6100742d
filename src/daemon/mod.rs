//! Wiring and life of the daemon.
#![forbid(unsafe_code)]

pub mod answers;
pub mod capture;
pub mod confine;
pub mod control;
pub mod failure;
pub mod files;
pub mod follow;
pub mod health;
pub mod http;
pub mod identity;
pub mod instance;
pub mod leasing;
pub mod lifecycle;
pub mod log;
pub mod memory;
pub mod mended;
pub mod metrics;
pub mod notify;
pub mod options;
pub mod overlay;
pub mod patience;
pub mod peers;
pub mod preflight;
pub mod probes;
pub mod remembered;
pub mod round_trips;
pub mod rules;
pub mod serving;
pub mod state_file;
pub mod subnet_env;
pub mod suspended;
pub mod ways;
