//! Faults of a datastore and of other writers, on a real etcd.

mod cluster;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uvxlan::subnet::manager::{OwnState, PeerChange, Running};
use uvxlan::subnet::store::Store;
use uvxlan::subnet::store::etcd::EtcdOptions;
use uvxlan::subnet::store::etcd_v3::EtcdStore;
use uvxlan::subnet::validate::Rejection;

use crate::support::etcd::{Etcd, PREFIX, until_up};
use crate::support::fleet::{attrs, follow, follow_for, follow_from, key, put_all, value};

const WAIT: Duration = Duration::from_secs(30);

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + WAIT;
    while !holds() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not reached: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Drains the changes, so that the manager never waits; returns every removal.
fn drain(running: &mut Running) -> Vec<PeerChange> {
    let mut removed = Vec::new();
    while let Ok(changes) = running.changes.try_recv() {
        let gone = changes
            .into_iter()
            .filter(|change| matches!(change, PeerChange::Removed(_)));
        removed.extend(gone);
    }
    removed
}

fn peers(running: &Running) -> usize {
    running.view.with(|set| set.peers().count())
}

#[tokio::test]
async fn ten_thousand_invalid_records_cost_no_peer() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let mut client = etcd.client().await;
    put_all(&mut client, (1..=50).map(|n| (key(n), value(n, 0)))).await;
    let stop = CancellationToken::new();
    let mut running = follow(Arc::new(etcd.store()), &stop).await;
    until("50 peers", || {
        drain(&mut running).is_empty() && peers(&running) == 50
    })
    .await;

    let rubbish = |n: u32| {
        let name = match n % 5 {
            0 => format!("x{n}.0.0.0-0"),
            1 => format!("11.{}.{}.0-24", n >> 8 & 0xff, n & 0xff),
            2 => format!("10.{}.{}.0-24", 100 + (n >> 8 & 0x3f), n & 0xff),
            3 => format!("10.{}.{}.0-24", 200 + (n >> 8 & 0x1f), n & 0xff),
            _ => format!("\u{1b}]0;{n}\u{7}"),
        };
        let value = match n % 5 {
            2 => br#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":"$(reboot)"}"#
                .to_vec(),
            3 => vec![0xff; 200],
            _ => value(9999, 0),
        };
        (format!("{PREFIX}/subnets/{name}"), value)
    };
    put_all(&mut client, (0..10_000).map(rubbish)).await;
    // Their valid values become invalid: the former values stay in force.
    put_all(&mut client, (1..=50).map(|n| (key(n), b"{".to_vec()))).await;
    let mut removed = Vec::new();
    until("all refusals are counted", || {
        removed.extend(drain(&mut running));
        running.view.with(|set| set.refused_total()) == 10_050
    })
    .await;
    assert_eq!(removed, []);
    assert_eq!(peers(&running), 50);
    let counts = running.view.with(|set| set.refused_by_reason().clone());
    assert_eq!(counts[&Rejection::Key], 4000);
    assert_eq!(counts[&Rejection::OutsideNetwork], 2000);
    assert_eq!(counts[&Rejection::BackendData], 2000);
    assert_eq!(counts[&Rejection::Value], 2050);

    // Valid again, and one properly deleted: followed as before.
    put_all(&mut client, (1..=50).map(|n| (key(n), value(n, 0)))).await;
    client.delete(key(7), None).await.unwrap();
    until("49 peers", || {
        removed.extend(drain(&mut running));
        peers(&running) == 49
    })
    .await;
    assert_eq!(removed.len(), 1);
    stop.cancel();
    running.task.await.unwrap();
}

#[tokio::test]
async fn a_peer_deleted_while_history_was_compacted_goes() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let mut client = etcd.client().await;
    put_all(&mut client, (1..=5).map(|n| (key(n), value(n, 0)))).await;
    let store = Arc::new(etcd.store());
    // The list is read; before the watch starts, its history is compacted.
    let listing = store.list().await.unwrap();
    client.delete(key(3), None).await.unwrap();
    put_all(&mut client, [(key(4), value(4, 1))]).await;
    let answer = client.get("x", None).await.unwrap();
    let revision = answer.header().unwrap().revision();
    client.compact(revision, None).await.unwrap();
    let stop = CancellationToken::new();
    let mut running = follow_from(store, listing, &stop).await;
    assert_eq!(running.changes.recv().await.unwrap().len(), 5);
    until("the peer is gone", || peers(&running) == 4).await;
    let new_mac = || {
        let data = attrs(4, 1).backend_data.unwrap();
        running.view.with(|set| {
            set.peers()
                .any(|peer| data.get().contains(&peer.vxlan.vtep_mac.to_string()))
        })
    };
    until("a changed MAC is seen", new_mac).await;
    stop.cancel();
}

#[tokio::test]
async fn a_wiped_store_removes_no_peer_while_they_return() {
    let Some(mut etcd) = Etcd::start(None).await else {
        return;
    };
    let mut client = etcd.client().await;
    put_all(&mut client, (1..=5).map(|n| (key(n), value(n, 0)))).await;
    let store = Arc::new(etcd.store());
    let stop = CancellationToken::new();
    let mut running = follow(store.clone(), &stop).await;
    until("5 peers", || {
        drain(&mut running).is_empty() && peers(&running) == 5
    })
    .await;
    etcd.kill();
    etcd.wipe();
    assert!(etcd.run().await);
    until_up(&*store).await;
    let mut client = etcd.client().await;
    // We restore our own; the others are as slow as hosts may be.
    let mut back = false;
    for _ in 0..300 {
        back = !client.get(key(0), None).await.unwrap().kvs().is_empty();
        if back {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(back, "the same subnet again");
    put_all(&mut client, (1..=5).map(|n| (key(n), value(n, 0)))).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(drain(&mut running), [], "no peer was removed");
    assert_eq!(peers(&running), 5);
    stop.cancel();
    running.task.await.unwrap();
}

#[tokio::test]
async fn a_replaced_store_gets_our_lease_again() {
    let Some(mut etcd) = Etcd::start(None).await else {
        return;
    };
    let mut client = etcd.client().await;
    put_all(&mut client, (1..=2).map(|n| (key(n), value(n, 0)))).await;
    let (proxy, options) = etcd.behind_proxy().await;
    let store = Arc::new(EtcdStore::new(options).unwrap());
    let stop = CancellationToken::new();
    let listing = store.list().await.unwrap();
    // flannel's TTL of a day: the next keepalive is ten minutes away.
    let mut running = follow_for(store, listing, Duration::from_secs(86_400), &stop).await;
    until("2 peers", || {
        drain(&mut running).is_empty() && peers(&running) == 2
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    proxy.shut();
    etcd.kill();
    etcd.wipe();
    assert!(etcd.run().await);
    until_up(&etcd.store()).await;
    let mut client = etcd.client().await;
    // Others were faster, and the revision is past what we saw.
    put_all(&mut client, [(key(1), value(1, 0))]).await;
    for round in 0..20 {
        put_all(&mut client, [(format!("other/{round}"), vec![])]).await;
    }
    proxy.open();
    let deadline = tokio::time::Instant::now() + WAIT;
    while client.get(key(0), None).await.unwrap().kvs().is_empty() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "our lease is not back"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(drain(&mut running), [], "the slow one is kept for a while");
    assert_eq!(peers(&running), 2);
    stop.cancel();
    running.task.await.unwrap();
}

#[tokio::test]
async fn a_blind_overwrite_is_reported_and_not_answered() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let mut client = etcd.client().await;
    let stop = CancellationToken::new();
    let mut running = follow(Arc::new(etcd.store()), &stop).await;
    let other = r#"{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{"VtepMAC":"0e:00:00:00:00:77"}}"#;
    client.put(key(0), other, None).await.unwrap();
    let taken = running
        .own
        .wait_for(|state| matches!(state, OwnState::TakenBy(_)));
    tokio::time::timeout(WAIT, taken)
        .await
        .expect("reported")
        .unwrap();
    let found = client.get(key(0), None).await.unwrap();
    assert_eq!(found.kvs()[0].value(), other.as_bytes(), "not overwritten");
    client.delete(key(0), None).await.unwrap();
    let held = running.own.wait_for(|state| *state == OwnState::Held);
    tokio::time::timeout(WAIT, held)
        .await
        .expect("ours again")
        .unwrap();
    let found = client.get(key(0), None).await.unwrap();
    assert_eq!(found.kvs()[0].value(), value(0, 0));
    stop.cancel();
    running.task.await.unwrap();
}
