//! Locks and atomics of what threads share. `tests/unprivileged/models.rs` puts loom's in their
//! place and explores the interleavings of threads.

pub(super) use std::sync::Mutex;
pub(super) use std::sync::atomic;
