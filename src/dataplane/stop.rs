//! How packet threads are told to end.

use super::sync::atomic::{AtomicBool, Ordering};

/// Something that a sleeping worker waits for, and that stays awake once woken.
pub trait Wake {
    /// Wakes all who wait, and all who will.
    fn wake(&self);
}

/// Set once, seen by workers between drains and while they wait.
#[derive(Debug)]
pub struct Stop<W> {
    set: AtomicBool,
    wake: W,
}

impl<W: Wake> Stop<W> {
    /// Not set yet.
    #[must_use]
    pub fn new(wake: W) -> Self {
        Self {
            set: AtomicBool::new(false),
            wake,
        }
    }

    /// Tells all.
    pub fn set(&self) {
        // First the flag: who is woken must find it.
        self.set.store(true, Ordering::Release);
        self.wake.wake();
    }

    /// Whether it was set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// What to wait for.
    #[must_use]
    pub const fn wake(&self) -> &W {
        &self.wake
    }
}
