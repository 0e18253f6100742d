//! Hash of an inner flow, the choice of the outer source port.
