//! Large packets through our packet loop: what arrives is what was sent, whatever the NICs
//! leave to the host, whatever is switched off, and however bad the underlay is.

mod bad_underlay;
mod nics;
mod path_mtu;
mod tcp_counters;
