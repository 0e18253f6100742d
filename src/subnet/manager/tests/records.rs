//! The set of peers against records that were meant to do harm, and against a model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::wire::MacAddr;

fn list(records: Vec<Record>) -> Listing {
    let revision = records.iter().map(|record| record.revision).max();
    Listing {
        records,
        revision: revision.unwrap_or(0),
    }
}

fn reasons(set: &PeerSet) -> Vec<Rejection> {
    set.refused().map(|refused| refused.reason).collect()
}

#[test]
fn what_this_host_needs_is_not_routed_away() {
    let mac = MacAddr([0x0e, 0, 0, 0, 0, 1]);
    let mut set = peer_set()
        .with_own_mac(mac)
        .with_subnet_len(24)
        .with_protected([Ipv4Addr::new(10, 5, 40, 1)]);
    assert_eq!(set.put(record("10.5.2.0-24", 1, value(2, 1))), []);
    assert_eq!(set.put(record("10.5.32.0-20", 2, value(3, 3))), []);
    assert_eq!(set.put(record("10.5.40.0-24", 3, value(4, 4))), []);
    assert_eq!(
        reasons(&set),
        [
            Rejection::OwnMac,
            Rejection::PrefixLen,
            Rejection::Protected
        ]
    );
    assert_eq!(set.put(record("10.5.41.0-24", 4, value(5, 5))).len(), 1);
}

#[test]
fn only_the_networks_own_length_is_believed_unless_told_otherwise() {
    let mut set = peer_set().with_subnet_len(24);
    for (name, host) in [("10.5.2.0-25", 2), ("10.5.4.0-23", 3)] {
        assert_eq!(set.put(record(name, 1, value(host, host))), []);
    }
    assert_eq!(reasons(&set), [Rejection::PrefixLen; 2]);
    let mut set = peer_set().with_subnet_len(24).with_mixed_lengths();
    for (name, host) in [("10.5.2.0-25", 2), ("10.5.4.0-23", 3)] {
        assert_eq!(set.put(record(name, 1, value(host, host))).len(), 1);
    }
}

#[test]
fn the_younger_of_two_with_one_address_waits() {
    let mut set = peer_set();
    let (two, three) = (peer("10.5.2.0/24", 2, 2), peer("10.5.3.0/24", 2, 3));
    assert_eq!(
        set.put(record("10.5.2.0-24", 1, value(2, 2))),
        [PeerChange::Added(two)]
    );
    assert_eq!(set.put(record("10.5.3.0-24", 2, value(2, 3))), []);
    assert_eq!(reasons(&set), [Rejection::DuplicateAddress]);
    let refused = set.take_news();
    assert_eq!(refused[0].rival.as_deref(), Some("10.5.2.0-24"));
    assert_eq!(
        set.delete("10.5.2.0-24"),
        [PeerChange::Removed(two), PeerChange::Added(three)]
    );
    assert_eq!(reasons(&set), []);
}

#[test]
fn two_hosts_may_swap_addresses_in_any_order() {
    let mut set = peer_set();
    set.put(record("10.5.2.0-24", 1, value(2, 2)));
    set.put(record("10.5.3.0-24", 2, value(3, 3)));
    assert_eq!(set.put(record("10.5.2.0-24", 1, value(3, 2))), [], "waits");
    set.put(record("10.5.3.0-24", 2, value(2, 3)));
    let swapped = [peer("10.5.2.0/24", 3, 2), peer("10.5.3.0/24", 2, 3)];
    assert_eq!(set.peers().copied().collect::<Vec<_>>(), swapped);
    // The same between two lists.
    let back = vec![
        record("10.5.2.0-24", 1, value(2, 2)),
        record("10.5.3.0-24", 2, value(3, 3)),
    ];
    assert_eq!(set.resync(list(back)).len(), 2);
    assert_eq!(reasons(&set), []);
}

#[test]
fn a_shared_mac_is_noted_and_carried() {
    let mut set = peer_set();
    set.put(record("10.5.2.0-24", 1, value(2, 9)));
    assert_eq!(set.put(record("10.5.3.0-24", 2, value(3, 9))).len(), 1);
    assert_eq!(set.shared_macs().count(), 1);
    assert_eq!(set.take_news()[0].reason, Rejection::DuplicateMac);
    set.delete("10.5.2.0-24");
    assert_eq!(set.shared_macs().count(), 0);
}

#[test]
fn names_are_kept_short_and_counted_by_reason() {
    let mut set = peer_set();
    let long = format!("{}\u{e4}{}", "a".repeat(99), "b".repeat(1 << 20));
    set.put(record(&long, 1, value(2, 2)));
    set.put(record("10.5.2.0-24", 2, Bytes::from_static(b"[]")));
    assert!(set.refused().all(|refused| refused.name.len() <= 100));
    assert_eq!(set.refused_by_reason()[&Rejection::Key], 1);
    assert_eq!(set.refused_by_reason()[&Rejection::Value], 1);
    set.delete(&long);
    assert_eq!(set.refused().count(), 1);
}

/// One thing that the store tells.
#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8, u8),
    Bad(u8),
    Delete(u8),
    List,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0u8..12, 2u8..9, 2u8..9).prop_map(|(place, host, mac)| Step::Put(place, host, mac)),
        1 => (0u8..12).prop_map(Step::Bad),
        3 => (0u8..12).prop_map(Step::Delete),
        1 => Just(Step::List),
    ]
}

/// Wide and narrow subnets that overlap each other.
fn name(place: u8) -> String {
    match place {
        0..4 => format!("10.5.{}.0-22", 16 + place * 4),
        _ => format!("10.5.{}.0-24", 16 + (place - 4) * 2),
    }
}

/// What the consumer makes of the changes; every change must fit what went before.
fn replay(carried: &mut BTreeMap<Ipv4Net, PeerRecord>, changes: Vec<PeerChange>) {
    for change in changes {
        match change {
            PeerChange::Added(peer) => assert_eq!(carried.insert(peer.subnet, peer), None),
            PeerChange::Updated { old, new } => {
                assert_eq!(old.subnet, new.subnet);
                assert_ne!(old, new);
                assert_eq!(carried.insert(new.subnet, new), Some(old));
            }
            PeerChange::Removed(peer) => assert_eq!(carried.remove(&peer.subnet), Some(peer)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_history_ends_in_disjoint_peers_of_the_store(steps in proptest::collection::vec(step(), 1..40)) {
        let mut set = peer_set();
        let mut store: BTreeMap<String, Record> = BTreeMap::new();
        let mut carried = BTreeMap::new();
        for (revision, step) in (1..).zip(steps) {
            let changes = match step {
                Step::Put(place, host, mac) => {
                    let name = name(place);
                    let created = store.get(&name).map_or(revision, |old| old.created);
                    let mut record = record(&name, created, value(host, mac));
                    record.revision = revision;
                    store.insert(name, record.clone());
                    set.put(record)
                }
                Step::Bad(place) => {
                    let name = name(place);
                    let created = store.get(&name).map_or(revision, |old| old.created);
                    let record = record(&name, created, Bytes::from_static(b"{}"));
                    store.insert(name, record.clone());
                    set.put(record)
                }
                Step::Delete(place) => {
                    store.remove(&name(place));
                    set.delete(&name(place))
                }
                Step::List => set.resync(list(store.values().cloned().collect())),
            };
            replay(&mut carried, changes);
            let now: Vec<_> = set.peers().copied().collect();
            prop_assert_eq!(&now, &carried.values().copied().collect::<Vec<_>>());
            for (index, peer) in now.iter().enumerate() {
                let key = format!("{}-{}", peer.subnet.addr(), peer.subnet.prefix_len());
                prop_assert!(store.contains_key(&key), "{key} is in the store");
                for other in &now[index + 1..] {
                    prop_assert!(!peer.subnet.contains(&other.subnet) && !other.subnet.contains(&peer.subnet));
                }
            }
        }
        let all = list(store.values().cloned().collect());
        replay(&mut carried, set.resync(all.clone()));
        prop_assert_eq!(set.resync(all), [], "a second equal list changes nothing");
        replay(&mut carried, set.resync(list(vec![])));
        prop_assert!(carried.is_empty());
        prop_assert_eq!(set.shared_macs().count(), 0);
    }
}
