//! Many segments of a flow into one super-packet.
