//! The set of peers against records that were meant to do harm, and against a model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::subnet::key::SubnetKey;
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
    // The older one has what it says at once; nobody could be reached by both.
    let (old, new) = (peer("10.5.2.0/24", 2, 2), peer("10.5.2.0/24", 3, 2));
    assert_eq!(
        set.put(record("10.5.2.0-24", 1, value(3, 2))),
        [
            PeerChange::Removed(peer("10.5.3.0/24", 3, 3)),
            PeerChange::Updated { old, new }
        ]
    );
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
    // The younger one first: it waits, and goes on as it was.
    assert_eq!(set.put(record("10.5.3.0-24", 2, value(2, 3))), []);
    set.put(record("10.5.2.0-24", 1, value(3, 2)));
    assert_eq!(set.peers().copied().collect::<Vec<_>>(), swapped);
    assert_eq!(reasons(&set), []);
}

#[test]
fn the_older_record_wins_whichever_came_first() {
    let (wide, narrow) = (peer("10.5.16.0/22", 2, 2), peer("10.5.17.0/24", 3, 3));
    let good = record("10.5.16.0-22", 1, value(2, 2));
    let bad = record("10.5.16.0-22", 1, Bytes::from_static(b"{}"));
    let young = record("10.5.17.0-24", 5, value(3, 3));
    // While the older one could not be read, the younger one was accepted.
    for by_list in [false, true] {
        let mut set = peer_set();
        set.put(bad.clone());
        assert_eq!(set.put(young.clone()), [PeerChange::Added(narrow)]);
        let changes = match by_list {
            true => set.resync(list(vec![young.clone(), good.clone()])),
            false => set.put(good.clone()),
        };
        let expected = [PeerChange::Removed(narrow), PeerChange::Added(wide)];
        assert_eq!(changes, expected);
        assert_eq!(reasons(&set), [Rejection::Overlap]);
        assert_eq!(
            set.delete("10.5.16.0-22"),
            [PeerChange::Removed(wide), PeerChange::Added(narrow)]
        );
    }
    // A store that was replaced counts anew.
    let mut set = peer_set();
    set.put(good);
    let young_now = record("10.5.16.0-22", 9, value(2, 2));
    set.resync(list(vec![young.clone(), young_now]));
    assert_eq!(set.peers().copied().collect::<Vec<_>>(), [narrow]);
}

#[test]
fn a_refusal_is_counted_and_told_once_for_each_content() {
    let mut set = peer_set();
    let mut store: Vec<_> = (0..6000)
        .map(|n| record(&format!("rubbish-{n}"), n + 1, value(2, 2)))
        .collect();
    store.push(record("10.5.2.0-24", 7001, value(2, 2)));
    store.push(record("10.5.3.0-24", 7002, value(2, 3)));
    for record in &store {
        set.put(record.clone());
    }
    assert_eq!(set.refused_total(), 6001);
    set.take_news();
    for _ in 0..3 {
        set.resync(list(store.clone()));
        set.add_all(list(store.clone()));
        assert_eq!(set.refused_total(), 6001);
        assert_eq!(set.take_news(), []);
        assert!(set.refused().count() >= 4096, "they are shown all the same");
    }
    // Another content of one of them is news.
    store[0].revision = 8000;
    set.resync(list(store));
    assert_eq!(set.refused_total(), 6002);
    assert_eq!(set.take_news().len(), 1);
}

#[test]
fn a_shared_mac_is_noted_and_carried() {
    let mut set = peer_set();
    set.put(record("10.5.2.0-24", 1, value(2, 9)));
    assert_eq!(set.put(record("10.5.3.0-24", 2, value(3, 9))).len(), 1);
    assert_eq!(set.take_news()[0].reason, Rejection::DuplicateMac);
    set.delete("10.5.2.0-24");
    set.put(record("10.5.3.0-24", 2, value(3, 8)));
    assert_eq!(set.put(record("10.5.4.0-24", 3, value(4, 9))).len(), 1);
    assert_eq!(set.take_news(), [], "nobody has it any more");
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

/// A store, and the set that follows it.
#[derive(Default)]
struct Followed {
    store: BTreeMap<String, Record>,
    good: BTreeMap<String, PeerRecord>,
    carried: BTreeMap<Ipv4Net, PeerRecord>,
    revision: i64,
}

impl Followed {
    fn write(&mut self, set: &mut PeerSet, place: u8, value: Bytes) {
        let name = name(place);
        let created = self
            .store
            .get(&name)
            .map_or(self.revision, |old| old.created);
        let mut record = record(&name, created, value);
        record.revision = self.revision;
        let context = Context {
            network: net("10.5.0.0/16"),
            vni: Vni::DEFAULT,
        };
        match crate::subnet::validate::check(&name, &record.value, &context) {
            Ok(peer) => self.good.insert(name.clone(), peer),
            Err(_) => self.good.remove(&name),
        };
        self.store.insert(name, record.clone());
        replay(&mut self.carried, set.put(record));
    }

    fn take(&mut self, set: &mut PeerSet, step: &Step) {
        self.revision += 1;
        match *step {
            Step::Put(place, host, mac) => self.write(set, place, value(host, mac)),
            Step::Bad(place) => self.write(set, place, Bytes::from_static(b"{}")),
            Step::Delete(place) => {
                self.store.remove(&name(place));
                self.good.remove(&name(place));
                replay(&mut self.carried, set.delete(&name(place)));
            }
            Step::List => {
                let changes = set.resync(self.all());
                replay(&mut self.carried, changes);
            }
        }
    }

    fn all(&self) -> Listing {
        list(self.store.values().cloned().collect())
    }

    /// Good records, the older ones first.
    fn good(&self) -> Vec<(i64, PeerRecord)> {
        let good = self.good.iter();
        let mut good: Vec<_> = good
            .map(|(name, peer)| (self.store[name].created, *peer))
            .collect();
        good.sort_by_key(|(created, _)| *created);
        good
    }

    fn created(&self, subnet: Ipv4Net) -> i64 {
        self.store[&SubnetKey::from(subnet).to_string()].created
    }
}

fn collide(a: &PeerRecord, b: &PeerRecord) -> bool {
    overlap(a, b) || a.public_ip == b.public_ip
}

fn overlap(a: &PeerRecord, b: &PeerRecord) -> bool {
    a.subnet.contains(&b.subnet) || b.subnet.contains(&a.subnet)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_history_ends_in_disjoint_peers_of_the_store(steps in proptest::collection::vec(step(), 1..40)) {
        let mut set = peer_set();
        let mut followed = Followed::default();
        for step in &steps {
            followed.take(&mut set, step);
            let now: Vec<_> = set.peers().copied().collect();
            prop_assert_eq!(&now, &followed.carried.values().copied().collect::<Vec<_>>());
            for (index, peer) in now.iter().enumerate() {
                let key = SubnetKey::from(peer.subnet).to_string();
                prop_assert!(followed.store.contains_key(&key), "{key} is in the store");
                for other in &now[index + 1..] {
                    prop_assert!(!overlap(peer, other));
                }
            }
            // Whoever is not in force as it says waits for an older one that is.
            for (created, wanted) in followed.good() {
                let held_up = |other: &&PeerRecord| {
                    other.subnet != wanted.subnet
                        && collide(other, &wanted)
                        && followed.created(other.subnet) < created
                };
                prop_assert!(
                    now.contains(&wanted) || now.iter().any(|other| held_up(&other)),
                    "{wanted:?} is not in force, and nothing older stands against it: {now:?}"
                );
            }
        }
        let changes = set.resync(followed.all());
        replay(&mut followed.carried, changes);
        prop_assert_eq!(set.resync(followed.all()), [], "a second equal list changes nothing");
        replay(&mut followed.carried, set.resync(list(vec![])));
        prop_assert!(followed.carried.is_empty());
        set.take_news();
        for mac in 2..9 {
            set.put(record("10.5.2.0-24", 1, value(2, mac)));
        }
        prop_assert_eq!(set.take_news(), [], "no MAC is left behind");
    }

    /// Without two that have one address, and nothing unreadable, only the store's content
    /// counts: nodes that began at different times agree.
    #[test]
    fn nodes_agree_whatever_they_saw_before(steps in proptest::collection::vec(step(), 1..60)) {
        let mut set = peer_set();
        let mut followed = Followed::default();
        for step in &steps {
            let step = match *step {
                Step::Put(place, _, mac) => Step::Put(place, 20 + place, mac),
                Step::Bad(place) => Step::Delete(place),
                ref other => other.clone(),
            };
            followed.take(&mut set, &step);
            let mut expected: Vec<PeerRecord> = Vec::new();
            for (_, peer) in followed.good() {
                if !expected.iter().any(|older| overlap(older, &peer)) {
                    expected.push(peer);
                }
            }
            expected.sort_by_key(|peer| peer.subnet);
            prop_assert_eq!(set.peers().copied().collect::<Vec<_>>(), expected);
        }
    }
}
