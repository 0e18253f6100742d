//! Shared by the test binaries.
#![allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "no test program uses all of it"
)]

pub(crate) mod contract;
pub(crate) mod directory;
pub(crate) mod etcd;
pub(crate) mod fleet;
pub(crate) mod inner;
pub(crate) mod nodes;
pub(crate) mod proxy;
pub(crate) mod receiving;
pub(crate) mod scale;
mod skip;
pub(crate) mod wire;

pub(crate) use skip::skipped;

/// Skips the test, with the reason, if the host does not support what it needs.
macro_rules! need {
    ($check:expr) => {
        match $check {
            Ok(found) => found,
            Err(reason) => {
                crate::support::skipped(reason);
                return;
            }
        }
    };
}
pub(crate) use need;
