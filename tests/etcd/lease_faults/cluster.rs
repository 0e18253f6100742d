//! A cluster of three members that loses one, then its quorum, and regains both.

use super::*;

fn store_of(members: &[Etcd; 3]) -> Arc<EtcdStore> {
    let options = EtcdOptions {
        endpoints: members.iter().map(Etcd::url).collect(),
        ..members[0].options()
    };
    Arc::new(EtcdStore::new(options).unwrap())
}

async fn held_within(running: &mut Running, longest: Duration) {
    let held = running.own.wait_for(|state| *state == OwnState::Held);
    tokio::time::timeout(longest, held)
        .await
        .expect("the lease is held again")
        .unwrap();
}

/// Writes one lease, with retries while the members elect a leader.
async fn put_when_led(client: &mut etcd_client::Client, number: u32) {
    let deadline = tokio::time::Instant::now() + WAIT;
    while let Err(error) = client.put(key(number), value(number, 0), None).await {
        assert!(tokio::time::Instant::now() < deadline, "no leader: {error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_cluster_may_lose_members_and_its_quorum() {
    let Some(mut members) = Etcd::start_three().await else {
        return;
    };
    let mut last = members[2].client().await;
    put_all(&mut last, (1..=5).map(|n| (key(n), value(n, 0)))).await;
    let stop = CancellationToken::new();
    // The shortest interval of keepalives, so that the loss is noticed within seconds.
    let ttl = Duration::from_secs(9);
    let store = store_of(&members);
    let listing = store.list().await.unwrap();
    let mut running = follow_for(store, listing, ttl, &stop).await;
    let mut removed = Vec::new();
    until("5 peers", || {
        removed.extend(drain(&mut running));
        peers(&running) == 5
    })
    .await;

    // The member in use dies; writes at another one arrive.
    members[0].kill();
    put_when_led(&mut last, 6).await;
    until("a change written at another member", || {
        removed.extend(drain(&mut running));
        peers(&running) == 6
    })
    .await;

    members[1].kill();
    let lost = running
        .own
        .wait_for(|state| matches!(state, OwnState::Unconfirmed(_)));
    tokio::time::timeout(Duration::from_secs(60), lost)
        .await
        .expect("the loss of the quorum is noticed")
        .unwrap();
    // Longer than the lease's TTL.
    tokio::time::sleep(ttl + Duration::from_secs(6)).await;
    removed.extend(drain(&mut running));
    assert_eq!(removed, [], "without a quorum no peer is removed");
    assert_eq!(peers(&running), 6);

    assert!(members[1].run().await);
    // A request that was in flight to a dead member may take some seconds to fail.
    held_within(&mut running, WAIT).await;
    assert!(members[0].run().await);
    let mut first = members[0].client().await;
    put_when_led(&mut first, 7).await;
    until("a change after the recovery", || {
        removed.extend(drain(&mut running));
        peers(&running) == 7
    })
    .await;
    assert_eq!(removed, []);
    let own = first.get(key(0), None).await.unwrap();
    assert_eq!(own.kvs()[0].value(), value(0, 0), "the same subnet");
    stop.cancel();
    running.task.await.unwrap();
}
