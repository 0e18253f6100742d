//! Inner Ethernet header.
