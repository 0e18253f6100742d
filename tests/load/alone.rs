//! Gives the machine to one test: others of the same binary wait, other binaries do not run.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// For a test that loads the machine, or measures: other tests at the same time would distort
/// it. The test has the machine to itself until the guard is dropped.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}
