//! Lists in which most of the peers are missing.

use super::*;

const HOLD: Duration = Duration::from_secs(30);

/// A life with five peers.
async fn begin() -> Life {
    let mut life = Life::begin(false).await;
    for host in 20..25 {
        let name = format!("10.5.{}.0-24", 100 + host);
        life.store.put(&name, value(host, host), true);
        assert_eq!(life.changes().await.len(), 1);
    }
    life
}

fn lose(life: &Life, hosts: std::ops::Range<u8>) {
    life.store.with(|state| {
        for host in hosts {
            let gone = state.records.remove(&format!("10.5.{}.0-24", 100 + host));
            assert!(gone.is_some());
        }
    });
    life.store.compact();
}

fn peers(life: &Life) -> usize {
    life.running.view.with(|set| set.peers().count())
}

#[tokio::test(start_paused = true)]
async fn most_peers_missing_are_kept_and_come_back() {
    let mut life = begin().await;
    lose(&life, 20..24);
    tokio::time::sleep(HOLD / 2).await;
    assert_eq!(peers(&life), 5);
    for host in 20..24 {
        let name = format!("10.5.{}.0-24", 100 + host);
        life.store.put(&name, value(host, host), true);
    }
    tokio::time::sleep(HOLD * 2).await;
    assert_eq!(peers(&life), 5);
    assert!(life.running.changes.try_recv().is_err(), "nobody noticed");
}

#[tokio::test(start_paused = true)]
async fn most_peers_missing_go_after_a_second_look() {
    let mut life = begin().await;
    lose(&life, 20..23);
    tokio::time::sleep(HOLD - Duration::from_secs(1)).await;
    assert!(life.running.changes.try_recv().is_err());
    // The store is away when the time is over: then nobody goes.
    life.store.with(|state| state.down = true);
    tokio::time::sleep(HOLD).await;
    assert_eq!(peers(&life), 5);
    life.store.with(|state| state.down = false);
    assert_eq!(life.changes().await.len(), 3);
    assert_eq!(peers(&life), 2);
    // The watch goes on; the memory has no history, so let it begin.
    tokio::time::sleep(Duration::from_millis(1)).await;
    life.store.put("10.5.90.0-24", value(90, 90), true);
    assert_eq!(life.changes().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_few_missing_peers_go_at_once() {
    let mut life = begin().await;
    lose(&life, 20..22);
    let before = tokio::time::Instant::now();
    assert_eq!(life.changes().await.len(), 2);
    assert!(before.elapsed() < HOLD);
}

#[tokio::test(start_paused = true)]
async fn in_a_small_cluster_too_most_peers_are_held() {
    for all in 1..=2_u8 {
        let mut life = Life::begin(false).await;
        for host in 0..all {
            let name = format!("10.5.{}.0-24", 120 + host);
            life.store.put(&name, value(20 + host, 20 + host), true);
            assert_eq!(life.changes().await.len(), 1);
        }
        // The store was wiped; our own lease is back before the list is read.
        lose(&life, 20..20 + all);
        let own = life.name.clone();
        assert!(life.store.value_of(&own).is_some());
        tokio::time::sleep(HOLD / 2).await;
        assert_eq!(peers(&life), usize::from(all));
        assert_eq!(life.changes().await.len(), usize::from(all), "in the end");
        // An ordinary event is believed at once.
        life.store.put("10.5.120.0-24", value(20, 20), true);
        tokio::time::sleep(Duration::from_millis(1)).await;
        life.store.put("10.5.120.0-24", value(20, 20), true);
        assert_eq!(life.changes().await.len(), 1);
        life.store.remove("10.5.120.0-24");
        let before = tokio::time::Instant::now();
        assert_eq!(life.changes().await.len(), 1);
        assert!(before.elapsed() < Duration::from_secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_begun_anew_takes_nobody_who_is_slow() {
    let mut life = begin().await;
    // Four of five are back already, as new records.
    life.store.with(|state| state.records.clear());
    for host in 20..24 {
        let name = format!("10.5.{}.0-24", 100 + host);
        life.store.with(|state| state.revision += 1);
        let revision = life.store.with(|state| state.revision);
        let back = record(&name, revision, value(host, host));
        life.store.with(|state| state.records.insert(name, back));
    }
    life.store.compact();
    tokio::time::sleep(HOLD / 2).await;
    assert_eq!(peers(&life), 5);
    assert!(life.running.changes.try_recv().is_err());
    assert_eq!(life.changes().await.len(), 1, "in the end");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_changes_a_second_are_taken() {
    const ALL: u32 = 3500;
    let mut life = Life::begin(false).await;
    let before = tokio::time::Instant::now();
    for number in 0..ALL {
        let mac = u8::try_from(number % 100).unwrap();
        life.store.put("10.5.120.0-24", value(20, mac), true);
    }
    for number in 1..=ALL {
        assert_eq!(life.changes().await.len(), 1);
        // The first second began a moment before.
        let took = (before.elapsed() + Duration::from_millis(10)).as_secs();
        assert_eq!(took, u64::from((number - 1) / 1000), "{number}");
    }
    // Who waits for that loses nothing, and our own lease is kept meanwhile.
    assert_eq!(peers(&life), 1);
    assert_eq!(life.state(), OwnState::Held);
}

#[tokio::test(start_paused = true)]
async fn a_store_without_our_own_lease_is_held_however_few_we_are() {
    let mut life = begin().await;
    for host in 20..24 {
        life.store.remove(&format!("10.5.{}.0-24", 100 + host));
        assert_eq!(life.changes().await.len(), 1);
    }
    let own = life.name.clone();
    life.store.with(|state| state.records.remove(&own));
    lose(&life, 24..25);
    tokio::time::sleep(HOLD / 2).await;
    assert_eq!(peers(&life), 1);
    assert!(life.store.value_of(&own).is_some(), "ours is back already");
    assert_eq!(life.changes().await.len(), 1, "the other is not");
}
