//! Masquerading and forward rules, as flannel installs them with iptables or nftables.
//!
//! [`rules`] defines which rules are wanted; [`iptables`] and [`nftables`] write and parse
//! them, text in and text out. [`command`] runs the programs, [`detect`] finds one that works,
//! [`manager`] installs the rules and keeps them installed.
#![forbid(unsafe_code)]

pub(crate) mod command;
pub(crate) mod detect;
mod iptables;
pub(crate) mod manager;
mod nftables;
pub(crate) mod rules;
