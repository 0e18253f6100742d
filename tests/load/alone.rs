//! Gives the machine to one test: others of the same binary wait, other binaries do not run.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test has the machine to itself until this is dropped.
#[must_use]
pub(crate) struct Alone {
    _guard: MutexGuard<'static, ()>,
}

/// For a test that loads the machine, or measures: other tests at the same time would distort it.
pub(crate) fn alone() -> Alone {
    static MACHINE: Mutex<()> = Mutex::new(());
    Alone {
        _guard: MACHINE.lock().unwrap_or_else(PoisonError::into_inner),
    }
}
