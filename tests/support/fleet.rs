//! Many leases at once, and one host that watches them.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Txn, TxnOp};
use ipnet::Ipv4Net;
use tokio_util::sync::CancellationToken;
use uvxlan::subnet::key::SubnetKey;
use uvxlan::subnet::lease::{Lease, LeaseAttrs, VxlanData};
use uvxlan::subnet::manager::{Acquired, PeerSet, Running, spawn};
use uvxlan::subnet::store::{Listing, Store, WriteOutcome};
use uvxlan::subnet::validate::Context;
use uvxlan::wire::{MacAddr, Vni};

use super::etcd::PREFIX;

/// Operations per transaction; etcd's limit is 128.
const BATCH: usize = 100;

pub(crate) fn subnet(number: u32) -> Ipv4Net {
    let address = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (number << 8));
    Ipv4Net::new(address, 24).unwrap()
}

pub(crate) fn key(number: u32) -> String {
    format!("{PREFIX}/subnets/{}", SubnetKey::from(subnet(number)))
}

pub(crate) fn attrs(number: u32, generation: u8) -> LeaseAttrs {
    let public_ip = Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(172, 16, 0, 0)) + number);
    let [_, a, b, c] = number.to_be_bytes();
    let vtep_mac = MacAddr([0x0e, generation, 0, a, b, c]);
    let vni = Some(Vni::DEFAULT);
    LeaseAttrs::vxlan(public_ip, VxlanData { vni, vtep_mac }).unwrap()
}

pub(crate) fn value(number: u32, generation: u8) -> Vec<u8> {
    attrs(number, generation).encode().unwrap()
}

/// Writes many keys in few requests.
pub(crate) async fn put_all(
    client: &mut Client,
    records: impl IntoIterator<Item = (String, Vec<u8>)>,
) {
    let puts: Vec<_> = records
        .into_iter()
        .map(|(key, value)| TxnOp::put(key, value, None))
        .collect();
    for batch in puts.chunks(BATCH) {
        let txn = Txn::new().and_then(batch);
        client.txn(txn).await.unwrap();
    }
}

/// A host with subnet 0 that watches the others.
pub(crate) async fn follow(store: Arc<dyn Store>, stop: &CancellationToken) -> Running {
    let listing = store.list().await.unwrap();
    follow_from(store, listing, stop).await
}

/// The same, with a list that may be stale.
pub(crate) async fn follow_from(
    store: Arc<dyn Store>,
    listing: Listing,
    stop: &CancellationToken,
) -> Running {
    follow_for(store, listing, Duration::from_secs(60), stop).await
}

/// The same, with another TTL.
pub(crate) async fn follow_for(
    store: Arc<dyn Store>,
    listing: Listing,
    ttl: Duration,
    stop: &CancellationToken,
) -> Running {
    let attrs = attrs(0, 0);
    let value = bytes::Bytes::from(attrs.encode_as(store.lease_form()).unwrap());
    let name = SubnetKey::from(subnet(0)).to_string();
    let written = store.create(&name, value.clone(), ttl).await.unwrap();
    let WriteOutcome::Written { revision } = written else {
        panic!("another host has our subnet");
    };
    let public_ip = attrs.public_ip;
    let lease = Lease {
        subnet: subnet(0),
        attrs,
        revision,
        reserved: false,
    };
    let context = Context {
        network: "10.0.0.0/8".parse().unwrap(),
        vni: Vni::DEFAULT,
    };
    let acquired = Acquired {
        lease,
        value,
        ttl,
        listing,
    };
    let peers = PeerSet::new(subnet(0), public_ip, context).with_subnet_len(24);
    spawn(store, acquired, peers, Duration::from_secs(1), stop.clone())
}

/// Resident memory of this process in KiB.
pub(crate) fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|text| text.parse().ok()).unwrap_or(0)
}
