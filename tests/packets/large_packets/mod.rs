//! Large packets through our packet loop arrive intact, with any NIC offloads, with any parts
//! switched off, and over a bad underlay.

mod bad_underlay;
mod nics;
mod path_mtu;
mod tcp_counters;
