//! The life cycle of leases on real stores: many hosts at once, and faults.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;
use uvxlan::subnet::config::NetworkConfig;
use uvxlan::subnet::lease::{LeaseAttrs, NodeId, VxlanData};
use uvxlan::subnet::manager::{
    AcquireError, AcquireRequest, Acquired, OwnState, PeerChange, PeerSet, Running, acquire, spawn,
};
use uvxlan::subnet::store::dir::DirStore;
use uvxlan::subnet::store::{Store, WriteOutcome};
use uvxlan::subnet::validate::Context;
use uvxlan::wire::{MacAddr, Vni};

use crate::support::etcd::{Etcd, PREFIX, until_up};

const HOSTS: u8 = 20;
const WAIT: Duration = Duration::from_secs(20);

/// 31 subnets, so that 20 hosts collide.
fn config() -> NetworkConfig {
    let text = br#"{"Network":"10.5.0.0/19","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
    NetworkConfig::parse(text, None).unwrap()
}

fn request(host: u8, ttl: Duration) -> AcquireRequest {
    let public_ip = Ipv4Addr::new(192, 168, 0, host);
    let data = VxlanData {
        vni: Some(Vni::DEFAULT),
        vtep_mac: MacAddr([0x0e, 0, 0, 0, 0, host]),
    };
    let attrs = LeaseAttrs::vxlan(public_ip, data).unwrap();
    AcquireRequest {
        public_ip,
        attrs,
        previous: None,
        in_use: None,
        device_mac: None,
        mixed_lengths: false,
        ttl,
    }
}

async fn take(store: &dyn Store, host: u8, ttl: Duration) -> Acquired {
    let mut rng = StdRng::seed_from_u64(host.into());
    acquire(store, &config(), &request(host, ttl), &mut rng)
        .await
        .unwrap()
}

fn run(store: Arc<dyn Store>, host: u8, acquired: Acquired, stop: &CancellationToken) -> Running {
    let context = Context {
        network: config().network,
        vni: Vni::DEFAULT,
    };
    let own_ip = Ipv4Addr::new(192, 168, 0, host);
    let peers = PeerSet::new(acquired.lease.subnet, own_ip, context);
    spawn(store, acquired, peers, Duration::from_secs(1), stop.clone())
}

async fn changes(running: &mut Running) -> Vec<PeerChange> {
    tokio::time::timeout(WAIT, running.changes.recv())
        .await
        .expect("changes arrive")
        .unwrap()
}

/// Waits until the record exists again, and returns whether it has a TTL.
async fn until_present(store: &dyn Store, name: &str) -> bool {
    let deadline = tokio::time::Instant::now() + WAIT;
    loop {
        if let Ok(Some(record)) = store.get(name).await {
            return record.expires;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{name} does not come back"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Each host has its own store client, as processes would.
async fn hosts_at_once(stores: Vec<Arc<dyn Store>>) {
    let ttl = Duration::from_secs(60);
    let mut tasks = tokio::task::JoinSet::new();
    for (host, store) in (1..).zip(stores.clone()) {
        tasks.spawn(async move { take(&*store, host, ttl).await.lease.subnet });
    }
    let subnets: BTreeSet<_> = tasks.join_all().await.into_iter().collect();
    assert_eq!(subnets.len(), stores.len(), "one subnet for each host");
    let records = stores[0].list().await.unwrap().records;
    assert_eq!(records.len(), stores.len(), "one record for each host");

    // After a restart all have the same subnets.
    for (host, store) in (1..).zip(&stores) {
        assert!(subnets.contains(&take(&**store, host, ttl).await.lease.subnet));
    }
    assert_eq!(stores[0].list().await.unwrap().records.len(), stores.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_hosts_at_once_get_twenty_subnets_from_etcd() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    hosts_at_once(
        (0..HOSTS)
            .map(|_| Arc::new(etcd.store()) as Arc<dyn Store>)
            .collect(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_hosts_at_once_get_twenty_subnets_from_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = || Arc::new(DirStore::new(dir.path())) as Arc<dyn Store>;
    hosts_at_once((0..HOSTS).map(|_| store()).collect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_hosts_that_race_for_the_last_subnet_one_wins_each_time() {
    const ROUNDS: usize = 1000;
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let text = br#"{"Network":"10.5.0.0/16","SubnetLen":24,"SubnetMin":"10.5.9.0","SubnetMax":"10.5.9.0"}"#;
    let config = Arc::new(NetworkConfig::parse(text, Some("vxlan")).unwrap());
    let stores: [Arc<dyn Store>; 2] = [Arc::new(etcd.store()), Arc::new(etcd.store())];
    until_up(&*stores[0]).await;
    let mut won = [0, 0];
    for round in 0..ROUNDS {
        let tasks = [0, 1].map(|host| {
            let (store, config) = (Arc::clone(&stores[host]), Arc::clone(&config));
            tokio::spawn(async move {
                let mut rng = StdRng::seed_from_u64(round as u64);
                let request = request(host as u8 + 1, Duration::from_secs(60));
                acquire(&*store, &config, &request, &mut rng).await
            })
        });
        let mut owners = Vec::new();
        for (host, task) in tasks.into_iter().enumerate() {
            if task.await.unwrap().is_ok() {
                owners.push(host);
                won[host] += 1;
            }
        }
        assert_eq!(owners.len(), 1, "round {round}: {owners:?}");
        let record = stores[0].get("10.5.9.0-24").await.unwrap().unwrap();
        let owner = format!("192.168.0.{}", owners[0] + 1);
        let value = String::from_utf8_lossy(&record.value).into_owned();
        assert!(
            value.contains(&owner),
            "round {round}: {value} is not {owner}'s"
        );
        let deleted = stores[0].delete("10.5.9.0-24", record.revision).await;
        assert!(
            matches!(deleted, Ok(WriteOutcome::Written { .. })),
            "{deleted:?}"
        );
    }
    println!("won: {won:?}");
}

async fn hosts_see_each_other(one: Arc<dyn Store>, two: Arc<dyn Store>) {
    let stop = CancellationToken::new();
    let ttl = Duration::from_secs(60);
    let first = take(&*one, 1, ttl).await;
    let (first_subnet, mut first) = (first.lease.subnet, run(one.clone(), 1, first, &stop));
    assert_eq!(
        changes(&mut first).await,
        [],
        "the first set of changes reports the list"
    );
    let second = take(&*two, 2, ttl).await;
    let (second_subnet, mut second) = (second.lease.subnet, run(two.clone(), 2, second, &stop));
    let seen = |changes: Vec<PeerChange>| match changes[..] {
        [PeerChange::Added(peer)] => (peer.subnet, peer.public_ip),
        _ => panic!("{changes:?}"),
    };
    assert_eq!(
        seen(changes(&mut second).await),
        (first_subnet, Ipv4Addr::new(192, 168, 0, 1))
    );
    assert_eq!(
        seen(changes(&mut first).await),
        (second_subnet, Ipv4Addr::new(192, 168, 0, 2))
    );

    // The second's record is deleted: it is restored, and is still one peer.
    let name = format!("{}-24", second_subnet.addr());
    let revision = one.get(&name).await.unwrap().unwrap().revision;
    one.delete(&name, revision).await.unwrap();
    until_present(&*one, &name).await;
    stop.cancel();
    first.task.await.unwrap();
    second.task.await.unwrap();
    assert_eq!(
        one.list().await.unwrap().records.len(),
        2,
        "a stop keeps the leases"
    );
}

#[tokio::test]
async fn hosts_see_each_other_through_etcd() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    hosts_see_each_other(Arc::new(etcd.store()), Arc::new(etcd.store())).await;
}

#[tokio::test]
async fn hosts_see_each_other_through_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let store = || Arc::new(DirStore::new(dir.path()));
    hosts_see_each_other(store(), store()).await;
}

/// A running host answers its clone through the store; one that is down does not.
async fn a_clone_is_refused(store: Arc<dyn Store>, other: Arc<dyn Store>) {
    let host = |secret: &str| {
        let mut request = request(1, Duration::from_secs(60));
        let instance = NodeId::of_instance(secret, "boot");
        request.attrs = request.attrs.with_instance(instance);
        request
    };
    let mut rng = StdRng::seed_from_u64(7);
    let first = acquire(&*store, &config(), &host("one"), &mut rng)
        .await
        .unwrap();
    let subnet = first.lease.subnet;
    let name = format!("{}-24", subnet.addr());
    let before = other.get(&name).await.unwrap().unwrap();
    let stop = CancellationToken::new();
    let mut running = run(store.clone(), 1, first, &stop);
    changes(&mut running).await;
    for _ in 0..2 {
        let refused = acquire(&*other, &config(), &host("two"), &mut rng).await;
        let error = refused.unwrap_err();
        assert!(
            matches!(error, AcquireError::AddressInUse { .. }),
            "{error}"
        );
        let now = other.get(&name).await.unwrap().unwrap();
        assert_eq!(
            (now.value, now.expires),
            (before.value.clone(), before.expires)
        );
    }
    // The record written as the answer is kept alive as before.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(store.keep_alive().await.unwrap());
    assert_eq!(*running.own.borrow(), OwnState::Held);
    stop.cancel();
    running.task.await.unwrap();
    let second = acquire(&*other, &config(), &host("two"), &mut rng)
        .await
        .unwrap();
    assert_eq!(second.lease.subnet, subnet);
}

#[tokio::test]
async fn a_clone_is_refused_on_every_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = || Arc::new(DirStore::new(dir.path()));
    a_clone_is_refused(store(), store()).await;
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    a_clone_is_refused(Arc::new(etcd.store()), Arc::new(etcd.store())).await;
    a_clone_is_refused(Arc::new(etcd.v2_store()), Arc::new(etcd.v2_store())).await;
}

#[tokio::test]
async fn a_reservation_in_etcd_stays_without_lease() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let mut client = etcd.client().await;
    let key = format!("{PREFIX}/subnets/10.5.7.0-24");
    let reserved = r#"{"PublicIP":"192.168.0.1","BackendType":"vxlan"}"#;
    client.put(key.as_str(), reserved, None).await.unwrap();
    let acquired = take(&etcd.store(), 1, Duration::from_secs(60)).await;
    assert!(acquired.lease.reserved);
    let answer = client.get(key, None).await.unwrap();
    assert_eq!(answer.kvs()[0].lease(), 0);
    let expected = br#"{"PublicIP":"192.168.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}}"#;
    assert_eq!(answer.kvs()[0].value(), expected);
}

#[tokio::test]
async fn a_lease_outlives_etcds_death_and_the_loss_of_its_data() {
    let Some(mut etcd) = Etcd::start(None).await else {
        return;
    };
    let store = Arc::new(etcd.store());
    let stop = CancellationToken::new();
    let acquired = take(&*store, 1, Duration::from_secs(3)).await;
    let name = format!("{}-24", acquired.lease.subnet.addr());
    let mut running = run(store.clone(), 1, acquired, &stop);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(
        until_present(&*store, &name).await,
        "kept alive beyond its TTL"
    );

    etcd.kill();
    let unconfirmed = running
        .own
        .wait_for(|state| matches!(state, OwnState::Unconfirmed(_)));
    tokio::time::timeout(WAIT, unconfirmed)
        .await
        .expect("the outage is reported")
        .unwrap();
    etcd.wipe();
    assert!(etcd.run().await);
    until_up(&*store).await;
    assert!(until_present(&*store, &name).await, "the same subnet again");
    let held = running.own.wait_for(|state| *state == OwnState::Held);
    tokio::time::timeout(WAIT, held)
        .await
        .expect("held again")
        .unwrap();
    stop.cancel();
    running.task.await.unwrap();
}
