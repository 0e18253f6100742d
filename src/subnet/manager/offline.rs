//! The watch of a manager that started from the offline cache.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::super::store::{Listing, Store, WatchEvent};

/// First and longest pause between two attempts to read the store.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Events that may wait for the receiver.
const CAPACITY: usize = 64;

/// As [`Store::watch`], but with a complete list first, as soon as the store answers.
pub(super) fn list_and_watch(store: Arc<dyn Store>) -> mpsc::Receiver<WatchEvent> {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    tokio::spawn(async move {
        let closed = sender.clone();
        tokio::select! {
            () = closed.closed() => {}
            () = forward(store, sender) => {}
        }
    });
    receiver
}

async fn forward(store: Arc<dyn Store>, sender: mpsc::Sender<WatchEvent>) {
    let listing = list(&*store).await;
    let mut events = store.watch(listing.revision);
    let mut next = Some(WatchEvent::Resync(listing));
    while let Some(event) = next {
        if sender.send(event).await.is_err() {
            return;
        }
        next = events.recv().await;
    }
}

async fn list(store: &dyn Store) -> Listing {
    let mut pause = BACKOFF.0;
    loop {
        match store.list().await {
            Ok(listing) => return listing,
            Err(error) if pause == BACKOFF.0 => {
                warn!(event = "leases_unread", %error, "leases can't be read: the peers are those of the offline cache");
            }
            Err(error) => debug!(%error, "leases still can't be read"),
        }
        sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}
