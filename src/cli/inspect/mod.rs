//! Commands that look at a running daemon and its host.

pub mod capture;
pub mod doctor;
pub mod ping;
pub mod report;
pub mod running;
pub mod status;
pub mod top;
pub mod trace;
