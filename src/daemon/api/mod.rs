//! What a running daemon tells others: control socket, status and trace, captures, health
//! checks and metrics.

pub(crate) mod capture;
pub(crate) mod control;
pub(crate) mod health;
mod http;
pub mod metrics;
pub(crate) mod status;
mod trace;
