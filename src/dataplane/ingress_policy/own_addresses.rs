//! This host's own addresses. The control thread sets them, packet threads read them.

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::dataplane::generation::{Cached, GenerationCell};

/// A set of addresses. Clones share the set, and each has a cached copy of it.
#[derive(Debug, Clone)]
pub struct OwnAddresses {
    shared: Arc<GenerationCell<Arc<[Ipv4Addr]>>>,
    cached: Cached<Arc<[Ipv4Addr]>>,
}

impl Default for OwnAddresses {
    fn default() -> Self {
        let shared = Arc::new(GenerationCell::new(Arc::from([])));
        let cached = shared.copy();
        Self { shared, cached }
    }
}

impl OwnAddresses {
    /// Replaces the set for all clones. They see it after their next refresh.
    pub fn set(&self, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        let mut addresses: Vec<_> = addresses.into_iter().collect();
        addresses.sort_unstable();
        addresses.dedup();
        if self.shared.with(|known| **known != *addresses) {
            self.shared.change(|known| *known = addresses.into());
        }
    }

    /// Brings this clone's copy up to date: one relaxed load if nothing changed.
    #[inline]
    pub(super) fn refresh(&mut self) {
        self.shared.refresh(&mut self.cached);
    }

    /// Whether an address was in the set at the last refresh.
    pub(super) fn contains(&self, address: Ipv4Addr) -> bool {
        self.cached.value.binary_search(&address).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_sees_a_change_after_its_refresh() {
        let [one, two] = [1, 2].map(|last| Ipv4Addr::new(192, 0, 2, last));
        let control = OwnAddresses::default();
        let mut worker = control.clone();
        control.set([two, one, two]);
        assert!(!worker.contains(one));
        worker.refresh();
        assert!(worker.contains(one) && worker.contains(two));
        control.set([two]);
        worker.refresh();
        assert!(!worker.contains(one) && worker.contains(two));
    }
}
