//! IPv6 header: view.
