//! Pure: one large packet and many small ones, in both directions.
#![forbid(unsafe_code)]

pub mod coalesce;
pub mod segment;
