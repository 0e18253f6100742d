//! The atomic pointer to the current snapshot.

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::table::{Change, RouteTable};

/// Passes snapshots from the control side to the packet workers. Readers take no lock and never
/// wait. The last reader of an old snapshot frees it.
#[derive(Debug, Clone)]
pub struct Routes(Arc<ArcSwap<RouteTable>>);

/// A worker's handle. It caches the snapshot and checks the pointer on each access, which costs
/// one atomic load while nothing changes.
#[derive(Debug, Clone)]
pub struct RouteReader(Cache<Arc<ArcSwap<RouteTable>>, Arc<RouteTable>>);

impl Routes {
    /// Publishes a first snapshot.
    #[must_use]
    pub fn new(table: RouteTable) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(table)))
    }

    /// Publishes the current snapshot with these changes. There must be only one writer: the
    /// control side.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        self.0.store(Arc::new(self.0.load().with(changes)));
    }

    /// Publishes a snapshot that was derived from the current one. There must be only one
    /// writer.
    pub fn publish(&self, table: RouteTable) {
        self.0.store(Arc::new(table));
    }

    /// The current snapshot.
    #[must_use]
    pub fn current(&self) -> Arc<RouteTable> {
        self.0.load_full()
    }

    /// A handle for a worker.
    #[must_use]
    pub fn reader(&self) -> RouteReader {
        RouteReader(Cache::new(Arc::clone(&self.0)))
    }
}

impl RouteReader {
    /// The current snapshot. Reference counts are touched only after a change.
    #[inline]
    pub fn current(&mut self) -> &RouteTable {
        self.0.load()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_what_is_published_and_frees_the_old() {
        let network = "10.0.0.0/16".parse().unwrap();
        let routes = Routes::new(RouteTable::empty(network, 24));
        let mut reader = routes.reader();
        assert!(reader.current().is_empty());
        let old = Arc::downgrade(&routes.current());
        let endpoint = "192.0.2.1:8472".parse().unwrap();
        let peer =
            crate::route::peer::RemoteVtep::new(endpoint, Default::default(), Default::default());
        routes.apply([("10.0.1.0/24".parse().unwrap(), peer)]);
        assert_eq!(reader.current().len(), 1);
        assert!(old.upgrade().is_none(), "the first snapshot is freed");
    }
}
