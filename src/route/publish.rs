//! The one atomic pointer to the current snapshot.

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::table::{Change, RouteTable};

/// Hands snapshots from the control side to the packet workers. Readers take no lock and
/// never wait; the last reader of an old snapshot frees it.
#[derive(Debug, Clone)]
pub struct Routes(Arc<ArcSwap<RouteTable>>);

/// A worker's view: it keeps the snapshot of its last look, and looks at the pointer each time
/// it is asked, which is one atomic load while nothing changes.
#[derive(Debug, Clone)]
pub struct RouteReader(Cache<Arc<ArcSwap<RouteTable>>, Arc<RouteTable>>);

impl Routes {
    /// Publishes a first snapshot.
    #[must_use]
    pub fn new(table: RouteTable) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(table)))
    }

    /// Publishes the current snapshot with these changes. One writer at a time: the
    /// control side owns this handle's writing end.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        self.0.store(Arc::new(self.0.load().with(changes)));
    }

    /// Publishes a snapshot made from the current one; same rule.
    pub fn publish(&self, table: RouteTable) {
        self.0.store(Arc::new(table));
    }

    /// The current snapshot.
    #[must_use]
    pub fn current(&self) -> Arc<RouteTable> {
        self.0.load_full()
    }

    /// A view for a worker.
    #[must_use]
    pub fn reader(&self) -> RouteReader {
        RouteReader(Cache::new(Arc::clone(&self.0)))
    }
}

impl RouteReader {
    /// The current snapshot: one atomic load, and a reference count only when it changed.
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
        assert!(
            old.upgrade().is_none(),
            "nobody holds the first snapshot any more"
        );
    }
}
