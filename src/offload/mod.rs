//! Pure: one large packet and many small ones, in both directions.
//!
//! [`segment`] takes apart what a TUN with TSO or USO hands out, [`coalesce`] puts
//! together what such a TUN takes. Payload is never copied: both give header blocks of
//! their own and ranges of the bytes that lie in the caller's buffers.
#![forbid(unsafe_code)]

pub mod coalesce;
mod ip;
pub mod segment;
