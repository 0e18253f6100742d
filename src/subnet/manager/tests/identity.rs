//! Whose a lease with our address is, and that a subnet in use is not given up.

use super::*;
use crate::subnet::lease::{Lease, LeaseForm, NodeId};
use crate::subnet::store::CHALLENGE_TIMEOUT;
use crate::wire::MacAddr;

const NAME: &str = "10.5.7.0-24";

/// A host by its machine-id (none: 0), installation and boot, on our public address.
fn host(machine: u8, secret: &str, boot: &str) -> AcquireRequest {
    let mut request = request(None);
    let machine_id = machine.to_string().repeat(32);
    if let Some(node) = NodeId::of_machine(&machine_id).filter(|_| machine != 0) {
        request.attrs = request.attrs.with_node(node);
    }
    let instance = NodeId::of_instance(secret, boot);
    request.attrs = request.attrs.with_instance(instance);
    request
}

/// A lease that a host wrote in an earlier life.
fn left_by(host: &AcquireRequest) -> Arc<Memory> {
    let store = Memory::new();
    let value = host.attrs.encode().unwrap();
    store.put(NAME, value.into(), true);
    store
}

/// The daemon of a host, which holds its lease.
async fn living(host: &AcquireRequest) -> (Arc<Memory>, Running) {
    let store = left_by(host);
    let acquired = acquire_as(&store, host).await.unwrap();
    let stop = CancellationToken::new();
    let mut running = spawn(store.clone(), acquired, peer_set(), HOUR, stop);
    running.changes.recv().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    (store, running)
}

/// The lease of a start from the offline cache.
fn cached(host: &AcquireRequest) -> Acquired {
    let lease = Lease {
        subnet: net("10.5.7.0/24"),
        attrs: host.attrs.clone(),
        revision: 0,
        reserved: false,
    };
    Acquired {
        lease,
        value: host.attrs.encode().unwrap().into(),
        ttl: host.ttl,
        listing: Listing {
            records: Vec::new(),
            revision: 0,
        },
    }
}

#[tokio::test(start_paused = true)]
async fn a_reboot_while_the_store_is_away_costs_no_lease() {
    let now = host(1, "secret", "next boot");
    let store = left_by(&host(1, "secret", "boot"));
    let stop = CancellationToken::new();
    let running = spawn(store.clone(), cached(&now), peer_set(), HOUR, stop);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(*running.own.borrow(), OwnState::Held);
    let expected = now.attrs.encode().unwrap();
    assert_eq!(store.value_of(NAME).unwrap(), expected);
    drop(running);

    // Another machine's is never taken, nor asked for.
    let other = host(2, "secret", "boot");
    let store = left_by(&other);
    let stop = CancellationToken::new();
    let running = spawn(store.clone(), cached(&now), peer_set(), HOUR, stop);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(*running.own.borrow(), OwnState::Contended);
    let kept = other.attrs.encode().unwrap();
    assert_eq!(store.value_of(NAME).unwrap(), kept);
    drop(running);

    // Nor that of a twin that lives.
    let (store, twin) = living(&host(1, "secret", "boot")).await;
    let stop = CancellationToken::new();
    let running = spawn(store.clone(), cached(&now), peer_set(), HOUR, stop);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(*running.own.borrow(), OwnState::Contended);
    assert_eq!(*twin.own.borrow(), OwnState::Held);
}

fn written(store: &Memory) -> usize {
    store.with(|state| state.writes)
}

#[tokio::test(start_paused = true)]
async fn a_lost_state_or_a_reboot_costs_seconds_and_not_the_subnet() {
    let us = host(1, "secret", "boot");
    for (what, now, asks) in [
        ("a restart", host(1, "secret", "boot"), false),
        ("a reboot", host(1, "secret", "next boot"), true),
        ("the state directory lost", host(1, "another", "boot"), true),
        ("all of it", host(1, "another", "next boot"), true),
    ] {
        let store = left_by(&us);
        let before = tokio::time::Instant::now();
        let acquired = acquire_as(&store, &now).await.unwrap();
        assert_eq!(acquired.lease.subnet, net("10.5.7.0/24"), "{what}");
        let expected = now.attrs.encode().unwrap();
        assert_eq!(store.value_of(NAME).unwrap(), expected, "{what}");
        let took = before.elapsed();
        assert_eq!(took >= CHALLENGE_TIMEOUT, asks, "{what} took {took:?}");
        assert!(took < CHALLENGE_TIMEOUT + Duration::from_secs(1), "{what}");
    }
    // Boards without a machine-id.
    let store = left_by(&host(0, "secret", "boot"));
    let acquired = acquire_as(&store, &host(0, "another", "boot")).await;
    assert_eq!(acquired.unwrap().lease.subnet, net("10.5.7.0/24"));
}

#[tokio::test(start_paused = true)]
async fn a_living_host_keeps_its_lease_against_every_clone() {
    for (machine, other) in [(1, 1), (0, 0), (0, 1), (1, 0)] {
        let first = host(machine, "secret", "boot");
        for (what, clone) in [
            ("with its state", host(other, "secret", "other boot")),
            ("without", host(other, "another", "other boot")),
            (
                "a namespace of the same host",
                host(other, "another", "boot"),
            ),
        ] {
            let (store, running) = living(&first).await;
            let value = store.value_of(NAME).unwrap();
            let before = tokio::time::Instant::now();
            let refused = acquire_as(&store, &clone).await.unwrap_err();
            assert!(
                matches!(&refused, AcquireError::AddressInUse { record, .. } if record == NAME),
                "{what}: {refused}"
            );
            assert!(before.elapsed() < Duration::from_secs(5), "{what}");
            assert_eq!(store.value_of(NAME).unwrap(), value, "{what}");
            let expires = store.with(|state| state.records[NAME].expires);
            assert!(expires, "{what}: it is no reservation now");
            assert_eq!(*running.own.borrow(), OwnState::Held, "{what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_is_no_news_for_peers_and_a_reservation_stays_one() {
    let first = host(1, "secret", "boot");
    let store = left_by(&first);
    store.put(NAME, first.attrs.encode().unwrap().into(), false);
    let acquired = acquire_as(&store, &first).await.unwrap();
    assert!(acquired.lease.reserved);
    let stop = CancellationToken::new();
    let mut running = spawn(store.clone(), acquired, peer_set(), HOUR, stop.clone());
    running.changes.recv().await.unwrap();
    // Another host that has both of them as peers.
    let mut wish = request(None);
    wish.public_ip = Ipv4Addr::new(192, 168, 0, 9);
    wish.attrs = attrs(9, 9);
    let other = acquire_as(&store, &wish).await.unwrap();
    let context = Context {
        network: net("10.5.0.0/16"),
        vni: Vni::DEFAULT,
    };
    let set = PeerSet::new(other.lease.subnet, wish.public_ip, context);
    let mut watching = spawn(store.clone(), other, set, HOUR, stop);
    assert_eq!(watching.changes.recv().await.unwrap().len(), 1);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let clone = host(1, "another", "boot");
    acquire_as(&store, &clone).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(watching.changes.try_recv().is_err(), "the same lease");
    assert_eq!(watching.view.with(|set| set.refused_total()), 0);
    assert!(!store.with(|state| state.records[NAME].expires));
}

#[tokio::test]
async fn another_machine_is_refused_without_asking() {
    for alive in [true, false] {
        let first = host(1, "secret", "boot");
        let store = match alive {
            true => living(&first).await.0,
            false => left_by(&first),
        };
        let before = written(&store);
        let error = acquire_as(&store, &host(2, "another", "other boot"))
            .await
            .unwrap_err();
        assert!(matches!(error, AcquireError::AddressInUse { .. }));
        assert_eq!(written(&store), before, "the first is untouched");
    }
}

#[tokio::test]
async fn the_kernel_devices_mac_and_flannels_own_lease_are_proof() {
    let store = left_by(&host(1, "secret", "boot"));
    let mut other = host(2, "another", "other boot");
    other.device_mac = Some(MacAddr([0x0e, 0, 0, 0, 0, 1]));
    let acquired = acquire_as(&store, &other).await.unwrap();
    assert_eq!(acquired.lease.subnet, net("10.5.7.0/24"));

    let store = Memory::new();
    store.put(NAME, value(1, 9), true);
    let acquired = acquire_as(&store, &host(2, "x", "y")).await.unwrap();
    assert_eq!(acquired.lease.subnet, net("10.5.7.0/24"));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_was_silent_finds_out_and_writes_no_more() {
    let first = host(1, "secret", "boot");
    let (store, mut running) = living(&first).await;
    // Its lease is taken while it cannot see that.
    let second = host(1, "another", "boot");
    let value: Bytes = second.attrs.encode().unwrap().into();
    store.put(NAME, value.clone(), true);
    let lost = running.own.wait_for(|state| *state == OwnState::Contended);
    lost.await.unwrap();
    tokio::time::sleep(HOUR).await;
    assert_eq!(store.value_of(NAME).unwrap(), value);
}

#[tokio::test]
async fn a_subnet_in_use_is_not_given_up() {
    let in_use = |subnet: &str| {
        let mut wish = host(1, "secret", "boot");
        wish.in_use = Some(net(subnet));
        wish
    };
    let refused = async |store: &Memory, wish: &AcquireRequest, cure: &str| {
        let before = store.with(|state| (state.writes, state.records.clone()));
        let error = acquire_as(store, wish).await.unwrap_err();
        assert!(matches!(error, AcquireError::Renumber { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(cure) && text.contains("--allow-renumber"),
            "{text}"
        );
        assert_eq!(
            store.with(|state| (state.writes, state.records.clone())),
            before
        );
    };
    // Somebody else has it.
    let store = Memory::new();
    store.put("10.5.7.0-24", value(2, 2), true);
    refused(&store, &in_use("10.5.7.1/24"), "lease release 10.5.7.0-24").await;
    // Our address, by DHCP, was another flannel host's, whose lease is still there.
    let store = Memory::new();
    store.put("10.5.8.0-24", value(1, 2), true);
    refused(&store, &in_use("10.5.7.0/24"), "lease release 10.5.8.0-24").await;
    // The network config gives out other subnets now.
    let store = Memory::new();
    store.put("10.9.7.0-24", value(1, 1), true);
    refused(&store, &in_use("10.9.7.0/24"), "network config").await;
    store.put("10.5.7.128-25", value(1, 1), true);
    refused(&store, &in_use("10.5.7.128/25"), "network config").await;

    // Nobody has it: the same again. And so with another address since the last start.
    let store = Memory::new();
    let acquired = acquire_as(&store, &in_use("10.5.7.0/24")).await.unwrap();
    assert_eq!(acquired.lease.subnet, net("10.5.7.0/24"));
    let mut moved = in_use("10.5.7.0/24");
    moved.public_ip = Ipv4Addr::new(192, 168, 0, 99);
    moved.attrs.public_ip = moved.public_ip;
    let acquired = acquire_as(&store, &moved).await.unwrap();
    assert_eq!(acquired.lease.subnet, net("10.5.7.0/24"));
    // Another address again, of a former host whose lease is older or younger than ours.
    for (older, at) in [(true, 1), (false, 9)] {
        let store = Memory::new();
        let theirs = record("10.5.8.0-24", at, value(1, 2));
        let own = record("10.5.7.0-24", 5, moved.attrs.encode().unwrap().into());
        store.with(|state| {
            for record in [theirs, own] {
                state.records.insert(record.name.clone(), record);
            }
        });
        let wish = in_use("10.5.7.0/24");
        if older {
            refused(&store, &wish, "lease release 10.5.8.0-24").await;
        } else {
            let acquired = acquire_as(&store, &wish).await.unwrap();
            assert_eq!(acquired.lease.subnet, net("10.5.7.0/24"));
        }
    }
    let found = store.value_of("10.5.7.0-24").unwrap();
    assert_eq!(found, moved.attrs.encode_as(LeaseForm::Newest).unwrap());

    // Who may renumber takes what the address has.
    store.put("10.5.8.0-24", value(1, 2), true);
    let mut free = host(2, "other", "boot");
    free.in_use = None;
    let acquired = acquire_as(&store, &free).await.unwrap();
    assert_eq!(acquired.lease.subnet, net("10.5.8.0/24"));
}

#[tokio::test]
async fn a_second_lease_of_this_host_goes() {
    let us = host(1, "secret", "boot");
    let value: Bytes = us.attrs.encode().unwrap().into();
    let store = Memory::new();
    store.put("10.5.6.0-24", value.clone(), true);
    store.put("10.5.7.0-24", value.clone(), true);
    store.put("10.5.8.0-24", value, false);
    let mut wish = us.clone();
    wish.in_use = Some(net("10.5.7.0/24"));
    let acquired = acquire_as(&store, &wish).await.unwrap();
    assert_eq!(acquired.lease.subnet, net("10.5.7.0/24"));
    // Peers would believe the oldest. A reservation is a person's.
    let left: Vec<_> = store.with(|state| state.records.keys().cloned().collect());
    assert_eq!(left, ["10.5.7.0-24", "10.5.8.0-24"]);
}
