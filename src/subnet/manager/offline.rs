//! The watch of a manager that started from the offline cache.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::super::store::{Listing, Store, WatchEvent, feed};

/// First and longest wait between retries.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Watches as [`Store::watch`] does, but sends a complete list first, as soon as the store
/// answers.
pub(super) fn list_and_watch(store: Arc<dyn Store>) -> mpsc::Receiver<WatchEvent> {
    feed::spawn(async move |events| {
        let listing = list(&*store).await;
        let mut watch = store.watch(listing.revision);
        let mut next = Some(WatchEvent::Resync(listing));
        while let Some(event) = next {
            feed::send(&events, event).await?;
            next = watch.recv().await;
        }
        Ok(())
    })
}

async fn list(store: &dyn Store) -> Listing {
    let mut pause = BACKOFF.0;
    loop {
        match store.list().await {
            Ok(listing) => return listing,
            Err(error) if pause == BACKOFF.0 => {
                warn!(event = "leases_unread", %error, "leases cannot be read: the peers are those of the offline cache");
            }
            Err(error) => debug!(%error, "leases still cannot be read"),
        }
        sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}
