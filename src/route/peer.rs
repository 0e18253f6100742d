//! A remote VTEP.
