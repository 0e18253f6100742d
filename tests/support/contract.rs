//! The contract that every store implements.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use uvxlan::subnet::store::{Store, WatchEvent, WriteOutcome};

use super::etcd::{Etcd, until_up};
use super::proxy::Proxy;

/// A TTL longer than any test.
pub(crate) const TTL: Duration = Duration::from_secs(60);
const A: &str = "10.5.1.0-24";
const B: &str = "10.5.2.0-24&fd00:5:2::-64";

/// The next event, within ten seconds.
pub(crate) async fn next(events: &mut mpsc::Receiver<WatchEvent>) -> WatchEvent {
    tokio::time::timeout(Duration::from_secs(10), events.recv())
        .await
        .expect("no event within 10 s")
        .expect("the watch ended")
}

/// Asserts that no event arrives for a while.
pub(crate) async fn quiet(events: &mut mpsc::Receiver<WatchEvent>, time: Duration) {
    if let Ok(event) = tokio::time::timeout(time, events.recv()).await {
        panic!("unexpected event {event:?}");
    }
}

/// The revision of a write that must have succeeded.
pub(crate) fn written(outcome: WriteOutcome) -> i64 {
    match outcome {
        WriteOutcome::Written { revision } => revision,
        WriteOutcome::Conflict => panic!("conflict"),
    }
}

/// Runs the whole contract on an empty store; `other` is a second client of it.
pub(crate) async fn check(store: &dyn Store, other: &dyn Store) {
    an_empty_store_is_empty(store).await;
    conditional_writes(store, other).await;
    a_watch_tells_what_happens(store, other).await;
    bad_names_are_refused(store).await;
    one_of_two_wins(store, other).await;
}

async fn an_empty_store_is_empty(store: &dyn Store) {
    assert_eq!(store.config().await.unwrap(), None);
    assert_eq!(store.list().await.unwrap().records, []);
    assert_eq!(store.get(A).await.unwrap(), None);
}

async fn conditional_writes(store: &dyn Store, other: &dyn Store) {
    let value = |text: &'static str| Bytes::from_static(text.as_bytes());
    let first = written(store.create(A, value("1"), TTL).await.unwrap());
    assert_eq!(
        store.create(A, value("1"), TTL).await.unwrap(),
        WriteOutcome::Conflict
    );
    assert_eq!(
        other.create(A, value("x"), TTL).await.unwrap(),
        WriteOutcome::Conflict
    );
    let record = other.get(A).await.unwrap().unwrap();
    assert_eq!(
        (record.name.as_str(), &record.value[..], record.revision),
        (A, &b"1"[..], first)
    );
    assert!(
        store.keep_alive().await.unwrap(),
        "a session that has just started"
    );

    let second = written(
        store
            .replace(A, value("2"), first, Some(TTL))
            .await
            .unwrap(),
    );
    assert_ne!(first, second);
    let stale = other
        .replace(A, value("x"), first, Some(TTL))
        .await
        .unwrap();
    assert_eq!(stale, WriteOutcome::Conflict);
    let absent = other
        .replace(B, value("x"), first, Some(TTL))
        .await
        .unwrap();
    assert_eq!(absent, WriteOutcome::Conflict, "replace must not create");

    // Writing the same bytes again is another write.
    let third = written(
        store
            .replace(A, value("2"), second, Some(TTL))
            .await
            .unwrap(),
    );
    assert_ne!(second, third);

    let reserved = written(store.replace(A, value("3"), third, None).await.unwrap());
    let listing = other.list().await.unwrap();
    assert_eq!(listing.records.len(), 1);
    assert_eq!(listing.records[0].revision, reserved);
    assert!(!listing.records[0].expires, "ttl None makes a reservation");

    assert_eq!(
        store.delete(A, third).await.unwrap(),
        WriteOutcome::Conflict
    );
    written(other.delete(A, reserved).await.unwrap());
    assert_eq!(
        store.delete(A, reserved).await.unwrap(),
        WriteOutcome::Conflict
    );
    assert_eq!(store.list().await.unwrap().records, []);
}

async fn a_watch_tells_what_happens(store: &dyn Store, other: &dyn Store) {
    let start = store.list().await.unwrap();
    let mut events = store.watch(start.revision);
    quiet(&mut events, Duration::from_millis(300)).await;
    let first = written(
        other
            .create(B, Bytes::from_static(b"1"), TTL)
            .await
            .unwrap(),
    );
    match next(&mut events).await {
        WatchEvent::Put(record) => {
            assert_eq!((record.name.as_str(), &record.value[..]), (B, &b"1"[..]));
            assert_eq!(record.revision, first);
        }
        event => panic!("{event:?}"),
    }
    let second = written(
        other
            .replace(B, Bytes::from_static(b"2"), first, Some(TTL))
            .await
            .unwrap(),
    );
    match next(&mut events).await {
        WatchEvent::Put(record) => assert_eq!(record.revision, second),
        event => panic!("{event:?}"),
    }
    written(other.delete(B, second).await.unwrap());
    match next(&mut events).await {
        WatchEvent::Delete { name, .. } => assert_eq!(name, B),
        event => panic!("{event:?}"),
    }
    quiet(&mut events, Duration::from_millis(300)).await;
}

async fn bad_names_are_refused(store: &dyn Store) {
    for name in ["", "../config", "a/b", ".hidden"] {
        let error = store.create(name, Bytes::new(), TTL).await.unwrap_err();
        assert!(!error.is_transient(), "{error}");
        assert!(store.get(name).await.is_err(), "{name}");
        assert!(store.delete(name, 1).await.is_err(), "{name}");
    }
}

async fn one_of_two_wins(store: &dyn Store, other: &dyn Store) {
    for round in 0..20 {
        let name = format!("10.6.{round}.0-24");
        let (one, two) = tokio::join!(
            store.create(&name, Bytes::from_static(b"one"), TTL),
            other.create(&name, Bytes::from_static(b"two"), TTL),
        );
        let (one, two) = (one.unwrap(), two.unwrap());
        let value = store.get(&name).await.unwrap().unwrap().value;
        match (one, two) {
            (WriteOutcome::Written { .. }, WriteOutcome::Conflict) => {
                assert_eq!(&value[..], b"one")
            }
            (WriteOutcome::Conflict, WriteOutcome::Written { .. }) => {
                assert_eq!(&value[..], b"two")
            }
            both => panic!("round {round}: {both:?}"),
        }
    }
}

/// An etcd that is replaced by an empty one gives a resync, even if the new one's history is past
/// our cursor by the time that we reconnect. `store` connects through the proxy, `direct` without.
pub(crate) async fn a_replaced_store_is_noticed(
    etcd: &mut Etcd,
    proxy: &Proxy,
    store: &dyn Store,
    direct: &dyn Store,
) {
    let value = || Bytes::from_static(b"{}");
    // Two hosts, and a cursor that stays small however long they run.
    written(store.create(A, value(), TTL).await.unwrap());
    written(direct.create(B, value(), TTL).await.unwrap());
    let cursor = store.list().await.unwrap().revision;
    let mut events = store.watch(cursor);
    quiet(&mut events, Duration::from_secs(1)).await;
    proxy.shut();
    etcd.kill();
    etcd.wipe();
    assert!(etcd.run().await);
    // The other host is back, and others have joined, before our watch reconnects.
    until_up(direct).await;
    for round in 2..cursor + 5 {
        let name = format!("10.5.{round}.0-24");
        written(direct.create(&name, value(), TTL).await.unwrap());
    }
    let listed = direct.list().await.unwrap();
    assert!(listed.revision > cursor);
    proxy.open();
    match next(&mut events).await {
        WatchEvent::Resync(listing) => {
            assert!(!listing.records.iter().any(|record| record.name == A));
            assert_eq!(listing.records.len(), listed.records.len());
        }
        event => panic!("{event:?}"),
    }
    quiet(&mut events, Duration::from_millis(500)).await;

    // The watch resumes after a disconnect, without another list.
    proxy.shut();
    tokio::time::sleep(Duration::from_millis(300)).await;
    proxy.open();
    written(direct.create("10.6.1.0-24", value(), TTL).await.unwrap());
    match next(&mut events).await {
        WatchEvent::Put(record) => assert_eq!(record.name, "10.6.1.0-24"),
        event => panic!("{event:?}"),
    }
}
