//! The manager on a store in memory, with a clock that the test moves.

mod guard;
mod identity;
mod memory;
mod records;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ipnet::Ipv4Net;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;

use self::memory::Memory;
use super::renewal::interval;
use super::*;
use crate::subnet::config::NetworkConfig;
use crate::subnet::lease::{LeaseAttrs, VxlanData};
use crate::subnet::store::{Listing, Record};
use crate::subnet::validate::{Context, PeerRecord, Rejection};
use crate::wire::Vni;

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3600);
const OWN_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);

fn config() -> NetworkConfig {
    let text = br#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
    NetworkConfig::parse(text, None).unwrap()
}

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn attrs(host: u8, mac: u8) -> LeaseAttrs {
    let vtep_mac = format!("0e:00:00:00:00:{mac:02x}").parse().unwrap();
    let vni = Some(Vni::try_from(1).unwrap());
    LeaseAttrs::vxlan(
        Ipv4Addr::new(192, 168, 0, host),
        VxlanData { vni, vtep_mac },
    )
    .unwrap()
}

fn value(host: u8, mac: u8) -> Bytes {
    attrs(host, mac).encode().unwrap().into()
}

fn record(name: &str, created: i64, value: Bytes) -> Record {
    Record {
        name: name.into(),
        value,
        revision: created,
        created,
        expires: true,
    }
}

fn request(previous: Option<&str>) -> AcquireRequest {
    let attrs = attrs(1, 1);
    AcquireRequest {
        public_ip: OWN_IP,
        attrs,
        previous: previous.map(net),
        in_use: None,
        device_mac: None,
        mixed_lengths: false,
        ttl: DAY,
    }
}

async fn take(store: &Memory, previous: Option<&str>) -> Result<Acquired, AcquireError> {
    let mut rng = StdRng::seed_from_u64(7);
    acquire(store, &config(), &request(previous), &mut rng).await
}

async fn acquire_as(store: &Memory, request: &AcquireRequest) -> Result<Acquired, AcquireError> {
    let mut rng = StdRng::seed_from_u64(7);
    acquire(store, &config(), request, &mut rng).await
}

#[tokio::test]
async fn a_fresh_host_gets_a_free_subnet_with_a_ttl() {
    let store = Memory::new();
    let acquired = take(&store, None).await.unwrap();
    let name = format!("{}-24", acquired.lease.subnet.addr());
    assert_eq!(store.value_of(&name).unwrap(), value(1, 1));
    assert!(store.with(|state| state.records[&name].expires));
    assert!(!acquired.lease.reserved);
    assert_eq!(acquired.listing.records, []);
}

#[tokio::test]
async fn our_public_ip_decides_and_a_reservation_stays_one() {
    for expires in [true, false] {
        let store = Memory::new();
        store.put("10.5.7.0-24", value(1, 9), expires);
        // The subnet of the file is somebody else's idea.
        let acquired = take(&store, Some("10.5.8.0/24")).await.unwrap();
        assert_eq!(acquired.lease.subnet, net("10.5.7.0/24"));
        assert_eq!(acquired.lease.reserved, !expires);
        let record = store.with(|state| state.records["10.5.7.0-24"].clone());
        assert_eq!((record.expires, record.value), (expires, value(1, 1)));
        assert_eq!(record.revision, acquired.lease.revision);
    }
}

#[tokio::test]
async fn an_equal_record_of_an_earlier_life_is_written_anew() {
    let store = Memory::new();
    let old = store.put("10.5.7.0-24", value(1, 1), true);
    let acquired = take(&store, None).await.unwrap();
    assert!(acquired.lease.revision > old);
}

#[tokio::test]
async fn of_several_own_leases_the_previous_one_is_kept() {
    let store = Memory::new();
    store.put("10.5.7.0-24", value(1, 1), true);
    store.put("10.5.8.0-24", value(1, 1), true);
    let acquired = take(&store, Some("10.5.8.1/24")).await.unwrap();
    assert_eq!(acquired.lease.subnet, net("10.5.8.0/24"));
    assert!(store.value_of("10.5.7.0-24").is_some());
}

#[tokio::test]
async fn an_own_lease_that_does_not_fit_is_deleted() {
    let store = Memory::new();
    store.put("10.9.7.0-24", value(1, 1), true);
    store.put("10.5.64.0-20", value(1, 1), true);
    let acquired = take(&store, None).await.unwrap();
    assert!(config().network.contains(&acquired.lease.subnet));
    assert_eq!(store.with(|state| state.records.len()), 1);
}

#[tokio::test]
async fn the_previous_subnet_is_taken_only_if_nobody_has_it() {
    let store = Memory::new();
    let free = take(&store, Some("10.5.8.1/24")).await.unwrap();
    assert_eq!(free.lease.subnet, net("10.5.8.0/24"));

    for (other, mixed_lengths) in [
        ("10.5.8.0-24", false),
        ("10.5.8.0-24", true),
        ("10.5.0.0-20", true),
        ("10.5.8.128-25", true),
    ] {
        let store = Memory::new();
        store.put(other, value(2, 2), true);
        let wish = AcquireRequest {
            mixed_lengths,
            ..request(Some("10.5.8.1/24"))
        };
        let acquired = acquire_as(&store, &wish).await.unwrap();
        assert_ne!(acquired.lease.subnet, net("10.5.8.0/24"), "{other}");
        assert_eq!(store.value_of(other).unwrap(), value(2, 2));
    }
}

#[tokio::test]
async fn lost_races_are_tried_again_ten_times() {
    let store = Memory::new();
    store.with(|state| state.conflicts = 9);
    take(&store, None).await.unwrap();

    let store = Memory::new();
    store.with(|state| state.conflicts = 10);
    let error = take(&store, None).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("Max retries reached trying to acquire a subnet: in 10 tries"),
        "{text}"
    );
}

#[tokio::test]
async fn a_full_network_is_said_and_rubbish_does_not_fill_it() {
    let store = Memory::new();
    // What peers refuse for its key: wide, long, elsewhere.
    for rubbish in [
        "0.0.0.0-1",
        "10.5.0.0-8",
        "10.5.0.0-16",
        "10.5.0.0-17",
        "10.5.128.0-17",
    ] {
        store.put(rubbish, value(66, 66), true);
    }
    let mut wish = request(Some("10.5.8.0/24"));
    wish.in_use = wish.previous;
    let acquired = acquire_as(&store, &wish).await.unwrap();
    assert_eq!(acquired.lease.subnet, net("10.5.8.0/24"));

    let mixed = AcquireRequest {
        mixed_lengths: true,
        ..request(None)
    };
    let store = Memory::new();
    store.put("10.5.0.0-16", value(2, 2), true);
    let error = acquire_as(&store, &mixed).await.unwrap_err().to_string();
    assert!(error.contains("out of subnets"), "{error}");

    // A valid key takes its place, whatever its value is.
    let store = Memory::new();
    for third in 1..=255 {
        let name = format!("10.5.{third}.0-24");
        store.put(&name, Bytes::from_static(b"rubbish"), true);
    }
    let error = take(&store, None).await.unwrap_err().to_string();
    assert!(error.contains("out of subnets"), "{error}");
}

#[test]
fn signs_of_life_come_often_enough() {
    let second = Duration::from_secs(1);
    assert_eq!(interval(DAY, HOUR), 600 * second);
    assert_eq!(
        interval(3 * second, HOUR),
        second,
        "a margin beyond the TTL"
    );
    assert_eq!(interval(90 * second, 80 * second), 10 * second);
}

struct Life {
    store: Arc<Memory>,
    running: Running,
    stop: CancellationToken,
    name: String,
}

impl Life {
    async fn begin(reserved: bool) -> Self {
        let store = Memory::new();
        if reserved {
            store.put("10.5.7.0-24", value(1, 1), false);
        }
        Self::begin_with(store, DAY).await
    }

    async fn begin_with(store: Arc<Memory>, ttl: Duration) -> Self {
        let name = "10.5.7.0-24".to_owned();
        let request = AcquireRequest {
            ttl,
            ..request(Some("10.5.7.0/24"))
        };
        let acquired = acquire_as(&store, &request).await.unwrap();
        let peers = peer_set();
        let stop = CancellationToken::new();
        let running = spawn(store.clone(), acquired, peers, HOUR, stop.clone());
        let mut life = Self {
            store,
            running,
            stop,
            name,
        };
        assert_eq!(
            life.changes().await,
            [],
            "the first set is complete, and empty here"
        );
        // The memory has no history: let the watch begin before the test goes on.
        tokio::time::sleep(Duration::from_millis(1)).await;
        life
    }

    async fn changes(&mut self) -> Vec<PeerChange> {
        let next = self.running.changes.recv();
        tokio::time::timeout(HOUR, next)
            .await
            .expect("no change")
            .expect("the manager ended")
    }

    async fn until(&mut self, wanted: impl FnMut(&OwnState) -> bool) -> OwnState {
        let wait = self.running.own.wait_for(wanted);
        tokio::time::timeout(HOUR, wait)
            .await
            .expect("state not reached")
            .unwrap()
            .clone()
    }

    fn state(&self) -> OwnState {
        self.running.own.borrow().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_year_of_signs_of_life_needs_no_write() {
    let life = Life::begin(false).await;
    let writes = life.store.with(|state| state.writes);
    tokio::time::sleep(365 * DAY).await;
    let (now, signs) = life.store.with(|state| (state.writes, state.signs_of_life));
    assert_eq!(now, writes);
    assert!((52_000..53_000).contains(&signs), "{signs}");
    assert_eq!(life.state(), OwnState::Held);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_is_begun_anew_and_delays_no_renewal() {
    let mut life = Life::begin_with(Memory::new(), Duration::from_secs(3)).await;
    let renewals = |life: &Life| life.store.with(|state| state.signs_of_life);
    for _ in 0..3 {
        let before = renewals(&life);
        life.store.end_watches();
        tokio::time::sleep(Duration::from_secs(61)).await;
        let since = renewals(&life) - before;
        assert!(since >= 60, "{since} renewals in 61 s, one a second is due");
    }
    life.store.put("10.5.2.0-24", value(2, 2), true);
    assert_eq!(life.changes().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_lease_is_taken_again_in_place() {
    for reserved in [false, true] {
        let life = Life::begin(reserved).await;
        life.store.remove(&life.name);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let record = life.store.with(|state| state.records[&life.name].clone());
        assert_eq!((record.value, record.expires), (value(1, 1), !reserved));
        assert_eq!(life.state(), OwnState::Held);
    }
}

#[tokio::test(start_paused = true)]
async fn a_person_may_make_a_reservation_of_it_and_take_that_back() {
    let life = Life::begin(false).await;
    for expires in [false, true, false] {
        life.store.put(&life.name, value(1, 1), expires);
        tokio::time::sleep(Duration::from_secs(5)).await;
        // The session ends, and the record is taken away by mistake.
        life.store.with(|state| state.session = false);
        tokio::time::sleep(HOUR).await;
        let now = life.store.with(|state| state.records[&life.name].clone());
        assert_eq!(now.expires, expires);
        life.store.remove(&life.name);
        tokio::time::sleep(HOUR).await;
        let now = life.store.with(|state| state.records[&life.name].clone());
        assert_eq!((now.expires, now.value), (expires, value(1, 1)));
        assert_eq!(life.state(), OwnState::Held);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_is_begun_anew() {
    let life = Life::begin(false).await;
    // The session went, its records with it, and the watch missed it.
    life.store.with(|state| {
        state.session = false;
        state.records.clear();
    });
    tokio::time::sleep(HOUR).await;
    assert_eq!(life.store.value_of(&life.name).unwrap(), value(1, 1));
    assert!(life.store.with(|state| state.session));
}

#[tokio::test(start_paused = true)]
async fn an_outage_changes_nothing_and_passes() {
    let mut life = Life::begin(false).await;
    life.store.put("10.5.2.0-24", value(2, 2), true);
    assert_eq!(life.changes().await.len(), 1);
    life.store.with(|state| state.down = true);
    life.until(|state| matches!(state, OwnState::Unconfirmed(_)))
        .await;
    tokio::time::sleep(DAY).await;
    assert!(
        life.running.changes.try_recv().is_err(),
        "no peer goes with the store"
    );
    let during = life.running.counters.read();
    assert!(during.renewals_failed > 0, "{during:?}");
    assert_eq!(during.left, Some(Duration::ZERO), "the day is over");
    life.store.with(|state| state.down = false);
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(life.state(), OwnState::Held);
    let after = life.running.counters.read();
    assert!(after.renewals > during.renewals, "{after:?}");
    assert!(
        after.left.is_some_and(|left| left > DAY - HOUR),
        "{after:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn another_holder_is_reported_and_not_overwritten() {
    let mut life = Life::begin(false).await;
    life.store.put(&life.name, value(2, 2), true);
    let state = life.until(|state| *state != OwnState::Held).await;
    assert_eq!(state, OwnState::TakenBy(Ipv4Addr::new(192, 168, 0, 2)));
    tokio::time::sleep(HOUR).await;
    assert_eq!(life.store.value_of(&life.name).unwrap(), value(2, 2));
    assert!(
        life.running.changes.try_recv().is_err(),
        "our subnet is nobody's as a peer"
    );
    // The other goes: ours again.
    life.store.remove(&life.name);
    life.until(|state| *state == OwnState::Held).await;
    assert_eq!(life.store.value_of(&life.name).unwrap(), value(1, 1));
}

#[tokio::test(start_paused = true)]
async fn another_daemon_with_our_address_is_reported() {
    let mut life = Life::begin(false).await;
    life.store.put(&life.name, value(1, 9), true);
    let state = life.until(|state| *state != OwnState::Held).await;
    assert_eq!(state, OwnState::Contended);
    life.store.put(&life.name, Bytes::from_static(b"{"), true);
    let state = life.until(|state| *state != OwnState::Contended).await;
    assert_eq!(state, OwnState::Unreadable);
    // Our own MAC in another form, as an older flannel writes it, is as good as ours.
    let old_form = r#"{"PublicIP":"192.168.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"0e:00:00:00:00:01"}}"#;
    let revision = life
        .store
        .put(&life.name, Bytes::from_static(old_form.as_bytes()), true);
    life.until(|state| *state == OwnState::Held).await;
    assert_eq!(
        life.store.with(|state| state.records[&life.name].revision),
        revision,
        "no write"
    );
}

#[tokio::test(start_paused = true)]
async fn another_address_lets_in_who_has_the_old_one() {
    let mut life = Life::begin(false).await;
    life.store.put("10.5.2.0-24", value(1, 2), true);
    life.store.put("10.5.3.0-24", value(9, 3), true);
    assert_eq!(
        life.changes().await,
        [PeerChange::Added(peer("10.5.3.0/24", 9, 3))]
    );
    life.store.with(|state| state.down = true);
    // We move to the address of the second, who is out, and the first one is in.
    life.running.republish.send(attrs(9, 1)).await.unwrap();
    assert_eq!(
        life.changes().await,
        [PeerChange::Removed(peer("10.5.3.0/24", 9, 3))]
    );
    tokio::time::sleep(Duration::from_secs(20)).await;
    life.store.with(|state| state.down = false);
    assert_eq!(
        life.changes().await,
        [PeerChange::Added(peer("10.5.2.0/24", 1, 2))]
    );
    life.until(|state| *state == OwnState::Held).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(life.store.value_of(&life.name).unwrap(), value(9, 1));
    // The watch goes on.
    life.store.put("10.5.4.0-24", value(4, 4), true);
    assert_eq!(life.changes().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_leaves_the_lease() {
    let life = Life::begin(false).await;
    life.stop.cancel();
    life.running.task.await.unwrap();
    assert_eq!(life.store.value_of(&life.name).unwrap(), value(1, 1));
    assert!(life.store.with(|state| state.session));
}

fn peer_set() -> PeerSet {
    let context = Context {
        network: net("10.5.0.0/16"),
        vni: Vni::try_from(1).unwrap(),
    };
    PeerSet::new(net("10.5.7.0/24"), OWN_IP, context)
}

fn peer(subnet: &str, host: u8, mac: u8) -> PeerRecord {
    let data = attrs(host, mac).backend_data.unwrap();
    let vxlan = serde_json::from_str(data.get()).unwrap();
    PeerRecord {
        subnet: net(subnet),
        public_ip: Ipv4Addr::new(192, 168, 0, host),
        vxlan,
        answers_probes: false,
    }
}

#[test]
fn peers_are_compared_by_subnet_and_content() {
    let mut set = peer_set();
    let two = record("10.5.2.0-24", 1, value(2, 2));
    assert_eq!(
        set.put(two.clone()),
        [PeerChange::Added(peer("10.5.2.0/24", 2, 2))]
    );
    assert_eq!(set.put(two.clone()), []);
    let (old, new) = (peer("10.5.2.0/24", 2, 2), peer("10.5.2.0/24", 2, 3));
    let moved = record("10.5.2.0-24", 1, value(2, 3));
    // What flannel misses: the MAC changed while the watch was broken.
    let listing = Listing {
        records: vec![moved],
        revision: 9,
    };
    assert_eq!(
        set.resync(listing.clone()),
        [PeerChange::Updated { old, new }]
    );
    assert_eq!(set.resync(listing), []);
    assert_eq!(
        set.resync(Listing {
            records: vec![],
            revision: 10
        }),
        [PeerChange::Removed(new)]
    );
    assert_eq!(set.delete("10.5.2.0-24"), []);
    assert_eq!(set.peers().count(), 0);
}

#[test]
fn we_are_not_our_own_peer() {
    let mut set = peer_set();
    assert_eq!(set.put(record("10.5.7.0-24", 1, value(1, 1))), []);
    assert_eq!(set.put(record("10.5.7.0-24", 1, value(2, 2))), []);
    assert_eq!(set.delete("10.5.7.0-24"), []);
    assert_eq!(set.refused_total(), 0);
    assert_eq!(set.put(record("10.5.9.0-24", 2, value(1, 5))), []);
    assert_eq!(set.put(record("10.5.7.128-25", 3, value(3, 3))), []);
    let reasons: Vec<_> = set.refused().map(|refused| refused.reason).collect();
    assert_eq!(reasons, [Rejection::Overlap, Rejection::OwnAddress]);
}

#[test]
fn a_bad_record_costs_itself_alone() {
    let mut set = peer_set();
    set.put(record("10.5.2.0-24", 1, value(2, 2)));
    for index in 0..10_000 {
        assert_eq!(
            set.put(record(&format!("rubbish{index}"), 2, Bytes::new())),
            []
        );
    }
    assert_eq!(
        set.put(record("10.5.2.0-24", 1, Bytes::from_static(b"{"))),
        [],
        "good content stays"
    );
    assert_eq!(
        set.peers().copied().collect::<Vec<_>>(),
        [peer("10.5.2.0/24", 2, 2)]
    );
    assert_eq!(set.refused_total(), 10_001);
    assert!(set.refused().count() <= 4096, "memory is bounded");
    assert!(set.take_news().len() <= 4096);
    assert_eq!(set.delete("10.5.2.0-24").len(), 1);
}

#[test]
fn the_older_of_two_that_overlap_wins_and_the_other_follows() {
    let mut set = peer_set();
    let records = vec![
        record("10.5.16.0-20", 5, value(3, 3)),
        record("10.5.17.0-24", 4, value(2, 2)),
        record("10.5.18.0-24", 6, value(4, 4)),
    ];
    let first = set.resync(Listing {
        records,
        revision: 6,
    });
    let two = peer("10.5.17.0/24", 2, 2);
    let four = peer("10.5.18.0/24", 4, 4);
    assert_eq!(first, [PeerChange::Added(two), PeerChange::Added(four)]);
    let refused: Vec<_> = set.take_news();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].rival.as_deref(), Some("10.5.17.0-24"));

    // The next in age, as a node that begins now sees it.
    let wide = peer("10.5.16.0/20", 3, 3);
    let gone = [two, four].map(PeerChange::Removed);
    let added = [PeerChange::Added(wide)];
    assert_eq!(set.delete("10.5.17.0-24"), [&gone[..], &added].concat());
    assert_eq!(set.refused().count(), 1);
    assert_eq!(set.delete("10.5.18.0-24"), []);
    assert_eq!(set.refused().count(), 0);
    assert_eq!(
        set.put(record("10.5.31.0-24", 7, value(5, 5))),
        [],
        "the first keeps its place"
    );
    let changes = set.delete("10.5.16.0-20");
    assert_eq!(
        changes,
        [
            PeerChange::Removed(wide),
            PeerChange::Added(peer("10.5.31.0/24", 5, 5))
        ]
    );
}
