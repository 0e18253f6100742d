//! A store's records in any order: what is told of each change, applied to a list, is the set.
#![no_main]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use libfuzzer_sys::fuzz_target;
use uvxlan::subnet::manager::{PeerChange, PeerSet};
use uvxlan::subnet::store::{Listing, Record};
use uvxlan::subnet::validate::{Context, PeerRecord};
use uvxlan::wire::{MacAddr, Vni};

const OWN_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

fn own_subnet() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 5, 0, 0), 24)
}

/// A few names and values, so that records collide: by name, by overlap, by address, by MAC.
fn record(bytes: [u8; 4], created: i64) -> Record {
    let [name, address, mac, shape] = bytes;
    let name = match name >> 5 {
        0..=4 => format!("10.5.{}.0-24", name & 0x1f),
        5 => format!("10.5.{}.0-23", name & 0x1f),
        6 => format!("10.5.{}.128-25", name & 0x1f),
        _ => ["config", "10.6.1.0-24", "10.5.1.0-24x", "0.0.0.0-0", ""][usize::from(name % 5)]
            .to_owned(),
    };
    let public_ip = format!("192.0.2.{}", address & 0x0f);
    let value = match shape & 7 {
        0 => "{}".to_owned(),
        1 => format!("{{\"PublicIP\":\"{public_ip}\""),
        2 => format!("{{\"PublicIP\":\"{public_ip}\",\"BackendType\":\"host-gw\"}}"),
        _ => format!(
            "{{\"PublicIP\":\"{public_ip}\",\"BackendType\":\"vxlan\",\"BackendData\":\
             {{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:{:02x}\"}}}}",
            mac & 0x0f
        ),
    };
    Record {
        name,
        value: value.into(),
        revision: created + 1,
        created: if shape & 8 != 0 {
            created
        } else {
            i64::from(mac)
        },
        expires: true,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((flags, mut rest)) = bytes.split_first() else {
        return;
    };
    let context = Context {
        network: Ipv4Net::new_assert(Ipv4Addr::new(10, 5, 0, 0), 16),
        vni: Vni::DEFAULT,
    };
    let mut own_ip = Ipv4Addr::new(192, 0, 2, 0);
    let mut set = PeerSet::new(own_subnet(), own_ip, context)
        .with_own_mac(OWN_MAC)
        .with_protected([Ipv4Addr::new(10, 5, 9, 9)]);
    set = match flags & 1 {
        0 => set.with_subnet_len(24),
        _ => set.with_mixed_lengths(),
    };
    let mut known: BTreeMap<Ipv4Net, PeerRecord> = BTreeMap::new();
    let mut created = 0;
    while let [what, behind @ ..] = rest {
        rest = behind;
        let mut next = || {
            let (bytes, behind) = rest.split_first_chunk::<4>()?;
            rest = behind;
            created += 1;
            Some(record(*bytes, created))
        };
        let changes = match what & 7 {
            0..=3 => next().map_or_else(Vec::new, |record| set.put(record)),
            4 => next().map_or_else(Vec::new, |record| set.delete(&record.name)),
            5 => {
                own_ip = Ipv4Addr::new(192, 0, 2, what >> 3 & 0x0f);
                set.set_own_address(own_ip)
            }
            kind => {
                let records = std::iter::from_fn(next)
                    .take(usize::from(what >> 3))
                    .collect();
                let listing = Listing {
                    records,
                    revision: 1,
                };
                let present: Vec<_> = listing.records.iter().map(|it| it.name.clone()).collect();
                let missing = set.missing_in(&listing);
                let doubtful = missing.missing + missing.recreated;
                assert!(doubtful <= missing.known && missing.known == known.len());
                match kind {
                    6 => set.add_all(listing),
                    _ => {
                        let changes = set.resync(listing);
                        for peer in set.peers() {
                            let network = peer.subnet.network();
                            let is_there = |name: &String| name.starts_with(&network.to_string());
                            assert!(present.iter().any(is_there), "{peer:?} is not in the list");
                        }
                        changes
                    }
                }
            }
        };
        for change in changes {
            take(&mut known, change);
        }
        let now: BTreeMap<_, _> = set.peers().map(|peer| (peer.subnet, *peer)).collect();
        assert_eq!(now, known, "what was told is not what is");
        stands(&set, &context, flags & 1 != 0);
    }
});

fn take(known: &mut BTreeMap<Ipv4Net, PeerRecord>, change: PeerChange) {
    match change {
        PeerChange::Added(peer) => {
            assert_eq!(known.insert(peer.subnet, peer), None, "added twice");
        }
        PeerChange::Updated { old, new } => {
            assert_eq!(old.subnet, new.subnet);
            assert_ne!(old, new, "nothing changed");
            assert_eq!(known.insert(new.subnet, new), Some(old));
        }
        PeerChange::Removed(peer) => {
            assert_eq!(known.remove(&peer.subnet), Some(peer), "was not there");
        }
    }
}

fn stands(set: &PeerSet, context: &Context, mixed: bool) {
    let peers: Vec<_> = set.peers().collect();
    for pair in peers.windows(2) {
        let (one, other) = (pair[0].subnet, pair[1].subnet);
        assert!(one.broadcast() < other.network(), "{one} overlaps {other}");
    }
    for peer in peers {
        assert!(context.network.contains(&peer.subnet));
        assert!(!peer.subnet.contains(&own_subnet()) && !own_subnet().contains(&peer.subnet));
        assert!(mixed || peer.subnet.prefix_len() == 24, "{}", peer.subnet);
        assert!(
            !peer.subnet.contains(&Ipv4Addr::new(10, 5, 9, 9)),
            "protected"
        );
        assert_ne!(peer.vxlan.vtep_mac, OWN_MAC);
    }
    assert!(set.refused().count() as u64 <= set.refused_total());
}
