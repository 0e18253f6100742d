//! A value that the control thread changes now and then, and that packet threads look at
//! once a drain, for one relaxed load while it stays.

use std::sync::PoisonError;

use super::sync::Mutex;
use super::sync::atomic::{AtomicU64, Ordering};

/// The value, and how often it has changed.
#[derive(Debug)]
pub struct GenerationCell<T> {
    generation: AtomicU64,
    value: Mutex<T>,
}

/// What a packet thread holds.
#[derive(Debug, Clone)]
pub struct Cached<T> {
    generation: u64,
    /// The value as of the last look.
    pub value: T,
}

impl<T: Clone> GenerationCell<T> {
    /// Begins with this value.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self {
            generation: AtomicU64::new(0),
            value: Mutex::new(value),
        }
    }

    /// Changes it.
    pub fn change(&self, change: impl FnOnce(&mut T)) {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut value);
        // Under the lock: a copy is made under it too, and so is of the generation it reads.
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Looks at it under the lock.
    pub fn with<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.value.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A copy of now.
    #[must_use]
    pub fn copy(&self) -> Cached<T> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        Cached {
            generation: self.generation.load(Ordering::Relaxed),
            value: value.clone(),
        }
    }

    /// Brings a copy up to date.
    #[inline]
    pub fn refresh(&self, copy: &mut Cached<T>) {
        if self.generation.load(Ordering::Relaxed) != copy.generation {
            *copy = self.copy();
        }
    }
}
