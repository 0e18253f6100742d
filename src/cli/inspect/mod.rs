//! Commands that examine a running daemon and its host.

pub(crate) mod capture;
pub(crate) mod doctor;
pub(crate) mod ping;
pub(crate) mod report;
pub(crate) mod running;
mod socket;
pub(crate) mod status;
mod terminal;
pub(crate) mod top;
pub(crate) mod trace;
