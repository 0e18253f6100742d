//! The immutable route snapshot and its lookup.
