//! Masquerading and forward rules: what flannel puts into iptables or nftables.
//!
//! [`rules`] says which rules, [`iptables`] and [`nftables`] how they are written and read,
//! all of it text in and text out; [`tools`] runs the programs, [`keeper`] puts the rules in
//! place and keeps them there.
#![forbid(unsafe_code)]

pub mod iptables;
pub mod keeper;
pub mod nftables;
pub mod rules;
pub mod tools;
