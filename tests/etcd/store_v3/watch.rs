//! Watches, through faults of the store and of the connection.

use std::time::Duration;

use super::{NAME, value};
use uvxlan::subnet::store::etcd::EtcdOptions;
use uvxlan::subnet::store::etcd_v3::EtcdStore;
use uvxlan::subnet::store::{Store, WatchEvent};

use crate::support::contract::{self, TTL, next, quiet, written};
use crate::support::etcd::{Etcd, until_up};
use crate::support::proxy::Proxy;

#[tokio::test]
async fn a_watch_survives_kill_and_restart() {
    let Some(mut etcd) = Etcd::start(None).await else {
        return;
    };
    let (store, other) = (etcd.store(), etcd.store());
    let mut events = store.watch(store.list().await.unwrap().revision);
    written(other.create(NAME, value(), TTL).await.unwrap());
    assert!(matches!(next(&mut events).await, WatchEvent::Put(_)));

    etcd.kill();
    quiet(&mut events, Duration::from_millis(700)).await;
    assert!(etcd.run().await);
    until_up(&other).await;
    written(other.create("10.5.2.0-24", value(), TTL).await.unwrap());
    match next(&mut events).await {
        WatchEvent::Put(record) => assert_eq!(record.name, "10.5.2.0-24"),
        event => panic!("{event:?}"),
    }
    quiet(&mut events, Duration::from_millis(500)).await;
}

#[tokio::test]
async fn events_missed_while_down_are_delivered() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let store = etcd.store();
    let start = store.list().await.unwrap().revision;
    for round in 0..50 {
        written(
            store
                .create(&format!("10.5.{round}.0-24"), value(), TTL)
                .await
                .unwrap(),
        );
    }
    let mut events = store.watch(start);
    for round in 0..50 {
        match next(&mut events).await {
            WatchEvent::Put(record) => assert_eq!(record.name, format!("10.5.{round}.0-24")),
            event => panic!("{event:?}"),
        }
    }
}

#[tokio::test]
async fn a_compaction_gives_exactly_one_resync() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let store = etcd.store();
    let start = store.list().await.unwrap().revision;
    let gone = written(store.create("10.5.9.0-24", value(), TTL).await.unwrap());
    written(store.create(NAME, value(), TTL).await.unwrap());
    written(store.delete("10.5.9.0-24", gone).await.unwrap());
    let now = store.list().await.unwrap().revision;
    etcd.client().await.compact(now, None).await.unwrap();

    let mut events = store.watch(start);
    match next(&mut events).await {
        WatchEvent::Resync(listing) => {
            let names: Vec<_> = listing.records.iter().map(|r| r.name.as_str()).collect();
            assert_eq!(
                names,
                [NAME],
                "the record deleted before the compaction is absent"
            );
            assert!(listing.revision >= now);
        }
        event => panic!("{event:?}"),
    }
    quiet(&mut events, Duration::from_secs(1)).await;
    written(store.create("10.5.2.0-24", value(), TTL).await.unwrap());
    match next(&mut events).await {
        WatchEvent::Put(record) => assert_eq!(record.name, "10.5.2.0-24"),
        event => panic!("{event:?}"),
    }
}

#[tokio::test]
async fn a_wiped_store_gives_a_resync() {
    let Some(mut etcd) = Etcd::start(None).await else {
        return;
    };
    let store = etcd.store();
    for round in 0..20 {
        written(
            store
                .create(&format!("10.5.{round}.0-24"), value(), TTL)
                .await
                .unwrap(),
        );
    }
    let mut events = store.watch(store.list().await.unwrap().revision);
    quiet(&mut events, Duration::from_millis(300)).await;
    etcd.kill();
    etcd.wipe();
    assert!(etcd.run().await);
    match next(&mut events).await {
        WatchEvent::Resync(listing) => assert_eq!(listing.records, []),
        event => panic!("{event:?}"),
    }
    written(store.create(NAME, value(), TTL).await.unwrap());
    assert!(matches!(next(&mut events).await, WatchEvent::Put(_)));
}

#[tokio::test]
async fn a_replaced_store_is_noticed_past_our_cursor_too() {
    let Some(mut etcd) = Etcd::start(None).await else {
        return;
    };
    let (proxy, options) = etcd.behind_proxy().await;
    let store = EtcdStore::new(options).unwrap();
    let direct = EtcdStore::new(etcd.options()).unwrap();
    contract::a_replaced_store_is_noticed(&mut etcd, &proxy, &store, &direct).await;
}

#[tokio::test]
async fn a_member_that_ends_every_stream_is_not_run_down() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let (proxy, options) = etcd.behind_proxy().await;
    let store = EtcdStore::new(options).unwrap();
    let _events = store.watch(store.list().await.unwrap().revision);
    // Each watch is created and confirmed, and ends soon after.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        proxy.cut();
    }
    let tries = proxy.tries();
    assert!((3..12).contains(&tries), "{tries} connections in 8 s");
}

#[tokio::test]
async fn the_watch_task_ends_with_its_receiver() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let store = etcd.store();
    let metrics = tokio::runtime::Handle::current().metrics();
    let revision = store.list().await.unwrap().revision;
    let before = metrics.num_alive_tasks();
    let events = store.watch(revision);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(metrics.num_alive_tasks() > before);
    drop(events);
    let mut left = 0;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        left = metrics.num_alive_tasks();
        if left <= before {
            return;
        }
    }
    panic!("{left} tasks are left, {before} existed before");
}

#[tokio::test]
async fn a_silent_connection_is_noticed() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let proxy = Proxy::start(etcd.port()).await;
    let options = EtcdOptions {
        endpoints: vec![proxy.url(), etcd.url()],
        ..etcd.options()
    };
    let store = EtcdStore::new(options).unwrap();
    let mut events = store.watch(store.list().await.unwrap().revision);
    quiet(&mut events, Duration::from_millis(500)).await;
    proxy.freeze();
    written(etcd.store().create(NAME, value(), TTL).await.unwrap());
    let event = tokio::time::timeout(Duration::from_secs(30), events.recv()).await;
    assert!(matches!(event, Ok(Some(WatchEvent::Put(_)))), "{event:?}");
}
