//! What threads share, by one name: `tests/unprivileged/models.rs` puts loom's in its place, and tries
//! every order in which threads can meet.

pub use std::sync::Mutex;
pub use std::sync::atomic;
