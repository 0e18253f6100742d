//! A value that the control thread changes now and then. Packet threads check once per drain
//! whether it changed, which costs one relaxed load.

use std::sync::PoisonError;

use super::sync::Mutex;
use super::sync::atomic::{AtomicU64, Ordering};

/// The value and the number of its changes.
#[derive(Debug)]
pub(crate) struct GenerationCell<T> {
    generation: AtomicU64,
    value: Mutex<T>,
}

/// A packet thread's copy of the value.
#[derive(Debug, Clone)]
pub(crate) struct Cached<T> {
    generation: u64,
    pub(crate) value: T,
}

impl<T: Clone> GenerationCell<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            generation: AtomicU64::new(0),
            value: Mutex::new(value),
        }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut T)) {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut value);
        // Under the lock, as is `copy`: a copy and its generation belong together.
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads the value under the lock.
    pub(crate) fn with<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.value.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn copy(&self) -> Cached<T> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        Cached {
            generation: self.generation.load(Ordering::Relaxed),
            value: value.clone(),
        }
    }

    /// Brings a copy up to date.
    #[inline]
    pub(crate) fn refresh(&self, cached: &mut Cached<T>) {
        if self.generation.load(Ordering::Relaxed) != cached.generation {
            *cached = self.copy();
        }
    }
}
