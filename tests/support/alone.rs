//! The machine for one test: others of the same program wait, other programs do not run.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The machine is one test's alone until this is dropped.
#[must_use]
pub(crate) struct Alone(MutexGuard<'static, ()>);

/// For a test that loads the machine, or measures: what others do beside it would count.
pub(crate) fn alone() -> Alone {
    static MACHINE: Mutex<()> = Mutex::new(());
    Alone(MACHINE.lock().unwrap_or_else(PoisonError::into_inner))
}
