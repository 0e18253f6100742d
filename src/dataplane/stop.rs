//! How packet threads are told to end.

use super::sync::atomic::{AtomicBool, Ordering};

/// Wakes sleeping workers. Once woken it stays so: later waits return at once.
pub(crate) trait Wake {
    fn wake(&self);
}

/// A flag that is set once. Workers check it between drains, and wait for `wake` when idle.
#[derive(Debug)]
pub(crate) struct Stop<W> {
    set: AtomicBool,
    wake: W,
}

impl<W: Wake> Stop<W> {
    pub(crate) fn new(wake: W) -> Self {
        Self {
            set: AtomicBool::new(false),
            wake,
        }
    }

    /// Tells all workers to end.
    pub(crate) fn set(&self) {
        // The flag first: a worker that is woken must find it set.
        self.set.store(true, Ordering::Release);
        self.wake.wake();
    }

    pub(crate) fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    pub(crate) const fn wake(&self) -> &W {
        &self.wake
    }
}
