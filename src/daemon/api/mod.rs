//! What a running daemon tells others: control socket, status and trace, captures, health
//! checks and metrics.

pub mod answers;
pub mod capture;
pub mod control;
pub mod health;
pub mod http;
pub mod metrics;
