//! This host's own addresses, as the control thread reads them now and then and packet
//! threads look at them.

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::dataplane::generation::{Cached, GenerationCell};

/// A set of addresses. Clones share what is set, and each has its own view of it.
#[derive(Debug, Clone)]
pub struct OwnAddresses {
    shared: Arc<GenerationCell<Arc<[Ipv4Addr]>>>,
    seen: Cached<Arc<[Ipv4Addr]>>,
}

impl Default for OwnAddresses {
    fn default() -> Self {
        let shared = Arc::new(GenerationCell::new(Arc::from([])));
        let seen = shared.copy();
        Self { shared, seen }
    }
}

impl OwnAddresses {
    /// Replaces the set, for all clones, once they refresh.
    pub fn set(&self, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        let mut addresses: Vec<_> = addresses.into_iter().collect();
        addresses.sort_unstable();
        addresses.dedup();
        if self.shared.with(|known| **known != *addresses) {
            self.shared.change(|known| *known = addresses.into());
        }
    }

    /// Brings this clone's view up to date: one relaxed load while nothing changes.
    #[inline]
    pub fn refresh(&mut self) {
        self.shared.refresh(&mut self.seen);
    }

    /// Whether an address was in the set at the last refresh.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.seen.value.binary_search(&address).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_sees_what_is_set_when_it_looks() {
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
