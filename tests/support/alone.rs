//! Who has the machine: tests run at the same time, but not beside one that measures.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static MACHINE: RwLock<()> = RwLock::new(());

/// The machine is one test's alone until this is dropped.
#[must_use]
pub(crate) struct Alone(RwLockWriteGuard<'static, ()>);

/// No other test is alone until this is dropped.
#[must_use]
pub(crate) struct Beside(RwLockReadGuard<'static, ()>);

/// For a test that floods the machine, or measures what a flood costs.
pub(crate) fn alone() -> Alone {
    Alone(MACHINE.write().unwrap_or_else(PoisonError::into_inner))
}

/// For the other tests of the same program.
pub(crate) fn beside_others() -> Beside {
    Beside(MACHINE.read().unwrap_or_else(PoisonError::into_inner))
}
