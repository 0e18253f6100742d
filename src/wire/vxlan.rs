//! VXLAN header (RFC 7348 section 5): view, checks and emit.
