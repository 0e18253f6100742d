//! The etcd store against a real etcd.

mod watch;

use std::time::Duration;

use bytes::Bytes;
use uvxlan::subnet::store::etcd::EtcdOptions;
use uvxlan::subnet::store::etcd_v3::EtcdStore;
use uvxlan::subnet::store::{Store, WatchEvent, WriteOutcome};

use crate::support::contract::{self, TTL, next, quiet, written};
use crate::support::etcd::{Etcd, PREFIX, certificates, free_port, until_up};
use crate::support::fleet::put_all;

const NAME: &str = "10.5.1.0-24";
const VALUE: &str = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;

fn value() -> Bytes {
    Bytes::from_static(VALUE.as_bytes())
}

#[tokio::test]
async fn keeps_the_contract_of_a_store() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    contract::check(&etcd.store(), &etcd.store()).await;
}

#[tokio::test]
async fn keys_and_values_are_flannels() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    // Double slashes collapse, as Go's path.Join does.
    let options = EtcdOptions {
        prefix: "/coreos.com//network/".into(),
        ..etcd.options()
    };
    let store = EtcdStore::new(options).unwrap();
    let revision = written(store.create(NAME, value(), TTL).await.unwrap());

    let mut client = etcd.client().await;
    let all = etcd_client::GetOptions::new().with_all_keys();
    let answer = client.get("", Some(all)).await.unwrap();
    assert_eq!(answer.kvs().len(), 1);
    let kv = &answer.kvs()[0];
    assert_eq!(
        kv.key_str().unwrap(),
        "/coreos.com/network/subnets/10.5.1.0-24"
    );
    assert_eq!(kv.value_str().unwrap(), VALUE);
    assert_eq!(kv.mod_revision(), revision);
    let ttl = client
        .lease_client()
        .time_to_live(kv.lease(), None)
        .await
        .unwrap();
    assert_eq!(ttl.granted_ttl(), 60);

    if let Some(output) = etcd.ctl(&["get", "--prefix", "/"]) {
        let expected = format!("/coreos.com/network/subnets/10.5.1.0-24\n{VALUE}\n");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }
}

#[tokio::test]
async fn reads_config_and_only_its_own_subtree() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let store = etcd.store();
    let mut client = etcd.client().await;
    client
        .put(
            format!("{PREFIX}/config"),
            "{\"Network\":\"10.5.0.0/16\"}",
            None,
        )
        .await
        .unwrap();
    client
        .put(format!("{PREFIX}/subnets-old/10.5.9.0-24"), "x", None)
        .await
        .unwrap();
    client
        .put(format!("{PREFIX}/subnets"), "x", None)
        .await
        .unwrap();
    client
        .put(format!("{PREFIX}/subnets/10.5.2.0-24"), "y", None)
        .await
        .unwrap();
    client
        .put(format!("{PREFIX}/subnets/\u{1}/deep"), b"\xff\xfe", None)
        .await
        .unwrap();

    let config = store.config().await.unwrap().unwrap();
    assert_eq!(&config[..], b"{\"Network\":\"10.5.0.0/16\"}");
    let listing = store.list().await.unwrap();
    let names: Vec<_> = listing
        .records
        .iter()
        .map(|record| record.name.as_str())
        .collect();
    assert_eq!(names, ["\u{1}/deep", "10.5.2.0-24"]);
    assert!(listing.records.iter().all(|record| !record.expires));

    let mut events = store.watch(listing.revision);
    client
        .put(format!("{PREFIX}/subnets-old/10.5.9.0-24"), "z", None)
        .await
        .unwrap();
    quiet(&mut events, Duration::from_millis(500)).await;
}

#[tokio::test]
async fn a_lease_lives_by_keepalive_and_dies_without() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let (alive, silent) = (etcd.store(), etcd.store());
    let ttl = Duration::from_secs(3);
    written(alive.create(NAME, value(), ttl).await.unwrap());
    written(silent.create("10.5.2.0-24", value(), ttl).await.unwrap());
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(alive.keep_alive().await.unwrap());
    }
    let listing = alive.list().await.unwrap();
    let names: Vec<_> = listing
        .records
        .iter()
        .map(|record| record.name.as_str())
        .collect();
    assert_eq!(names, [NAME]);
    assert!(listing.records[0].expires);

    // The session is lost: reported once, then forgotten; the next write starts another.
    assert!(!silent.keep_alive().await.unwrap());
    assert!(!silent.keep_alive().await.unwrap());
    written(silent.create("10.5.2.0-24", value(), ttl).await.unwrap());
    assert!(silent.keep_alive().await.unwrap());
}

#[tokio::test]
async fn an_expired_session_is_replaced_by_the_next_write() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let store = etcd.store();
    written(store.create(NAME, value(), TTL).await.unwrap());
    let mut client = etcd.client().await;
    let key = format!("{PREFIX}/subnets/{NAME}");
    let lease = client.get(key, None).await.unwrap().kvs()[0].lease();
    client.lease_client().revoke(lease).await.unwrap();
    assert_eq!(store.get(NAME).await.unwrap(), None);
    // No keep_alive in between: the write itself notices.
    written(store.create(NAME, value(), TTL).await.unwrap());
    assert!(store.get(NAME).await.unwrap().unwrap().expires);
}

#[tokio::test]
async fn a_lost_race_leaks_no_lease() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let (winner, loser) = (etcd.store(), etcd.store());
    written(winner.create(NAME, value(), TTL).await.unwrap());
    for _ in 0..5 {
        let outcome = loser
            .create(NAME, Bytes::from_static(b"x"), TTL)
            .await
            .unwrap();
        assert_eq!(outcome, WriteOutcome::Conflict);
    }
    written(loser.create("10.5.2.0-24", value(), TTL).await.unwrap());
    let leases = etcd.client().await.lease_client().leases().await.unwrap();
    assert_eq!(leases.leases().len(), 2, "one lease for each store");
}

#[tokio::test]
async fn an_error_names_endpoints_and_cause_and_passes() {
    let Some(mut etcd) = Etcd::start(None).await else {
        return;
    };
    etcd.kill();
    let store = etcd.store();
    let error = store.config().await.unwrap_err();
    let text = error.to_string();
    assert!(error.is_transient(), "{text}");
    assert!(
        text.contains(&etcd.url()) && text.contains("refused"),
        "{text}"
    );
    assert!(
        text.starts_with("reading the network config at etcd"),
        "{text}"
    );
    assert!(store.list().await.is_err(), "an error, not an empty list");

    assert!(etcd.run().await);
    until_up(&store).await;
    assert_eq!(store.config().await.unwrap(), None);
}

#[tokio::test]
async fn dead_members_among_the_endpoints_do_not_matter() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let dead = || format!("http://127.0.0.1:{}", free_port());
    let options = EtcdOptions {
        endpoints: vec![dead(), dead(), etcd.url()],
        ..etcd.options()
    };
    let store = EtcdStore::new(options).unwrap();
    let mut events = store.watch(store.list().await.unwrap().revision);
    for round in 0..10 {
        written(
            store
                .create(&format!("10.5.{round}.0-24"), value(), TTL)
                .await
                .unwrap(),
        );
        assert!(matches!(next(&mut events).await, WatchEvent::Put(_)));
    }
    assert_eq!(store.list().await.unwrap().records.len(), 10);
}

#[tokio::test]
async fn values_of_any_size_and_number_are_listed() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let store = etcd.store();
    let start = store.list().await.unwrap().revision;
    let mut client = etcd.client().await;
    let good = |n: u32| {
        (
            format!("{PREFIX}/subnets/10.{}.{}.0-24", n >> 8, n & 0xff),
            VALUE.into(),
        )
    };
    put_all(&mut client, (0..2500).map(good)).await;
    // More than one response can hold.
    let large = vec![b'x'; 1 << 20];
    for n in 0..72 {
        let key = format!("{PREFIX}/subnets/10.5.{n}.0-24-large");
        client.put(key, large.clone(), None).await.unwrap();
    }
    let listing = store.list().await.unwrap();
    assert_eq!(listing.records.len(), 2572);
    let mut names: Vec<_> = listing.records.iter().map(|record| &record.name).collect();
    names.dedup();
    assert_eq!(names.len(), 2572, "each record once");
    let longest = listing
        .records
        .iter()
        .map(|record| record.value.len())
        .max();
    assert_eq!(
        longest,
        Some((64 << 10) + 1),
        "just enough to exceed the limit"
    );
    // A watch that was disconnected meanwhile.
    let mut events = store.watch(start);
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 2572 {
        match next(&mut events).await {
            WatchEvent::Put(record) => drop(seen.insert(record.name)),
            WatchEvent::Resync(listing) => {
                seen.extend(listing.records.into_iter().map(|record| record.name));
            }
            event => panic!("{event:?}"),
        }
    }
    written(store.create("10.200.1.0-24", value(), TTL).await.unwrap());
    match next(&mut events).await {
        WatchEvent::Put(record) => assert_eq!(record.name, "10.200.1.0-24"),
        event => panic!("{event:?}"),
    }
}

#[tokio::test]
async fn a_list_is_of_one_revision_over_all_its_pages() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let store = etcd.store();
    let mut client = etcd.client().await;
    // One record moves from the end to the beginning and back, each time in one transaction: every
    // list has it exactly once.
    let fill = |n: u32| (format!("{PREFIX}/subnets/10.5.{n}"), VALUE.into());
    put_all(&mut client, (0..3000).map(fill)).await;
    let places = ["10.1.0.0-24", "10.9.0.0-24"].map(|name| format!("{PREFIX}/subnets/{name}"));
    client.put(places[0].as_str(), VALUE, None).await.unwrap();
    let moving = tokio::spawn(async move {
        use etcd_client::{Txn, TxnOp};
        for round in 0.. {
            let (from, to) = (&places[round % 2], &places[(round + 1) % 2]);
            let swap = [
                TxnOp::delete(from.as_str(), None),
                TxnOp::put(to.as_str(), VALUE, None),
            ];
            client.txn(Txn::new().and_then(swap)).await.unwrap();
        }
    });
    for _ in 0..30 {
        let listing = store.list().await.unwrap();
        assert_eq!(listing.records.len(), 3001);
    }
    moving.abort();
}

#[tokio::test]
async fn tls_with_a_ca_alone_and_mutual() {
    for mutual in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let tls = certificates(dir.path(), mutual);
        let Some(etcd) = Etcd::start(Some(tls.clone())).await else {
            return;
        };
        let mut options = EtcdOptions {
            ca_file: Some(tls.ca.clone()),
            ..etcd.options()
        };
        if mutual {
            let anonymous = EtcdStore::new(options.clone()).unwrap();
            // In TLS 1.3 the member's alert may be lost when it closes the connection, so neither
            // the text nor the permanence of the error is certain.
            assert!(anonymous.list().await.is_err());
            options.cert_file = Some(tls.client_cert.clone());
            options.key_file = Some(tls.client_key.clone());
        }
        let store = EtcdStore::new(options).unwrap();
        until_up(&store).await;
        let mut events = store.watch(store.list().await.unwrap().revision);
        written(store.create(NAME, value(), TTL).await.unwrap());
        assert!(matches!(next(&mut events).await, WatchEvent::Put(_)));
    }
}

#[tokio::test]
async fn a_member_of_another_ca_is_refused_by_name() {
    let (dir, other_ca) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tls = certificates(dir.path(), false);
    let Some(etcd) = Etcd::start(Some(tls)).await else {
        return;
    };
    let wrong = certificates(other_ca.path(), false);
    let options = EtcdOptions {
        ca_file: Some(wrong.ca),
        ..etcd.options()
    };
    let error = EtcdStore::new(options).unwrap().config().await.unwrap_err();
    let text = error.to_string();
    assert!(!error.is_transient(), "{text}");
    assert!(
        text.contains("certificate") && text.contains(&etcd.url()),
        "{text}"
    );
}
