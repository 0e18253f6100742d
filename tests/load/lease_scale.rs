//! Many leases: all of them are seen, and every change is followed.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uvxlan::subnet::manager::PeerChange;

use crate::alone::alone;
use crate::support::etcd::Etcd;
use crate::support::fleet::{follow, key, put_all, value};

const LEASES: u32 = 2000;
const WAIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_leases_and_their_changes_are_followed() {
    let _machine = alone();
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let mut client = etcd.client().await;
    put_all(&mut client, (1..=LEASES).map(|n| (key(n), value(n, 0)))).await;
    let stop = CancellationToken::new();
    let mut running = follow(Arc::new(etcd.store()), &stop).await;
    let first = running.changes.recv().await.unwrap();
    assert_eq!(first.len(), LEASES as usize);
    put_all(&mut client, (1..=LEASES).map(|n| (key(n), value(n, 1)))).await;
    let mut updated = 0;
    while updated < LEASES {
        let next = tokio::time::timeout(WAIT, running.changes.recv()).await;
        for change in next.expect("all changes arrive").unwrap() {
            assert!(matches!(change, PeerChange::Updated { .. }), "{change:?}");
            updated += 1;
        }
    }
    assert_eq!(running.view.with(|set| set.refused_total()), 0);
    stop.cancel();
    running.task.await.unwrap();
}
