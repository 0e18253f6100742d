//! Who owns a lease with our public address?
//!
//! Two hosts may have the same address: behind NAT (Vagrant's 10.0.2.15), by a wrong
//! `--public-ip`, as clones of one image. The second one must not take the first one's lease; and
//! a host that lost its files must get its own back. A lease of this program names its writer by
//! two numbers after flannel's fields: the machine (of `/etc/machine-id`, if there is one) and
//! the instance (of a secret in the state directory and the kernel's boot id).
//!
//! | the lease | what happened | owner |
//! |---|---|---|
//! | has our instance | a restart, also with another address | we |
//! | has the MAC of the kernel device on this host | taken over from flannel, with or without its files | we |
//! | names neither machine nor instance | flannel wrote it; flannel takes it too | we |
//! | names another machine | another host, alive or not | the other host |
//! | names our machine, another instance | we rebooted or lost the state directory, or it is a clone, with our state directory or without | unclear |
//! | one of the two has no machine-id, another instance | the same, on boards without machine-id | unclear |
//! | names our machine and no instance | an older version of this program, here or on a clone | we |
//!
//! If it is unclear, the holder is challenged: we write the lease's own value with one more
//! number. Peers see the same lease. A daemon that holds it sees that its record was changed and
//! writes its value again at once ([`super::renewal`]); one that does not within the store's
//! [`Store::challenge_timeout`] is gone. This cannot detect a holder that is cut off from the
//! store at that moment. Once it is back, it finds another instance in its record, leaves the
//! record alone and logs an error.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use ipnet::Ipv4Net;
use rand::{Rng, RngExt};
use tokio::time::{Instant, sleep};
use tracing::info;

use super::super::key::SubnetKey;
use super::super::lease::{LeaseAttrs, NodeId, VxlanData};
use super::super::store::{Listing, Record, Store, StoreError, StoreErrorKind, WriteOutcome};
use super::request::AcquireRequest;
use crate::wire::MacAddr;

/// Between two reads of a challenged record.
const POLL_INTERVAL: Duration = Duration::from_millis(150);

/// A record whose key is a subnet's.
pub(super) struct ExistingLease<'a> {
    pub(super) subnet: Ipv4Net,
    /// Has an IPv6 subnet too, which this program does not lease.
    pub(super) dual_stack: bool,
    pub(super) record: &'a Record,
    pub(super) attrs: Option<LeaseAttrs>,
}

impl<'a> ExistingLease<'a> {
    pub(super) fn of(record: &'a Record) -> Option<Self> {
        let key: SubnetKey = record.name.parse().ok()?;
        Some(Self {
            subnet: key.v4,
            dual_stack: key.v6.is_some(),
            record,
            attrs: LeaseAttrs::decode(&record.value).ok(),
        })
    }

    pub(super) fn all_of(listing: &'a Listing) -> impl Iterator<Item = Self> {
        listing.records.iter().filter_map(Self::of)
    }
}

/// Who owns a lease with our public address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ownership {
    Ours,
    Theirs,
    /// Its holder has to be challenged.
    Unclear,
}

/// Records whose holder did not respond to a challenge, with the revision since.
pub(super) type Unanswered = BTreeMap<String, i64>;

/// Whether a lease has our public address, or we wrote it when we had another one.
pub(super) fn concerns_us(request: &AcquireRequest, lease: &ExistingLease<'_>) -> bool {
    let Some(attrs) = &lease.attrs else {
        return false;
    };
    attrs.public_ip == request.public_ip || is_our_instance(request, attrs)
}

fn is_our_instance(request: &AcquireRequest, attrs: &LeaseAttrs) -> bool {
    attrs.instance.is_some() && attrs.instance == request.attrs.instance
}

/// Implements the table above.
pub(super) fn ownership(
    request: &AcquireRequest,
    lease: &ExistingLease<'_>,
    unanswered: &Unanswered,
) -> Ownership {
    let Some(attrs) = &lease.attrs else {
        return Ownership::Theirs;
    };
    let silent = unanswered.get(&lease.record.name) == Some(&lease.record.revision);
    let our_device = request.device_mac.is_some() && mac(attrs) == request.device_mac;
    if silent || our_device || is_our_instance(request, attrs) {
        return Ownership::Ours;
    }
    match (attrs.node, request.attrs.node) {
        (Some(theirs), Some(ours)) if theirs != ours => Ownership::Theirs,
        _ if attrs.instance.is_none() => Ownership::Ours,
        _ => Ownership::Unclear,
    }
}

/// Challenges the holder of a lease; whether it is alive. If not, the record was written, by us
/// or by somebody else.
pub(super) async fn is_holder_alive(
    store: &dyn Store,
    request: &AcquireRequest,
    lease: &ExistingLease<'_>,
    unanswered: &mut Unanswered,
    rng: &mut (impl Rng + Send),
) -> Result<bool, StoreError> {
    let (Some(attrs), record) = (&lease.attrs, lease.record) else {
        return Ok(false);
    };
    let reaction = challenge(store, record, attrs, rng.random(), request.ttl).await?;
    if let Reaction::Silence { revision } = reaction {
        unanswered.insert(record.name.clone(), revision);
    }
    Ok(reaction == Reaction::Alive)
}

/// How the holder of a record reacted to a challenge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reaction {
    Alive,
    /// Somebody else wrote the record.
    Changed,
    /// None; the record with the challenge has this revision.
    Silence {
        revision: i64,
    },
}

/// Writes a challenge over a record that says `attrs`, and waits for the reaction. A record that
/// expires keeps doing so, after `ttl`.
pub(super) async fn challenge(
    store: &dyn Store,
    record: &Record,
    attrs: &LeaseAttrs,
    bits: u64,
    ttl: Duration,
) -> Result<Reaction, StoreError> {
    let name = &record.name;
    info!(
        event = "lease_ask",
        name,
        "our lease was written before this boot, or by another host: asking whether its holder is alive"
    );
    let value = attrs.clone().with_challenge(NodeId::of_bits(bits));
    let value = value.encode_as(store.lease_form());
    let value = value.map_err(|error| cannot_encode(name, error))?;
    let ttl = record.expires.then_some(ttl);
    let outcome = store
        .replace(name, Bytes::from(value), record.revision, ttl)
        .await?;
    let WriteOutcome::Written { revision } = outcome else {
        return Ok(Reaction::Changed);
    };
    let end = Instant::now() + store.challenge_timeout();
    while Instant::now() < end {
        sleep(POLL_INTERVAL).await;
        let Some(found) = store.get(name).await? else {
            return Ok(Reaction::Changed);
        };
        if found.revision == revision {
            continue;
        }
        // Another host may challenge at the same time.
        let alive = LeaseAttrs::decode(&found.value)
            .is_ok_and(|found| found.challenge.is_none() && found.instance == attrs.instance);
        return Ok(match alive {
            true => Reaction::Alive,
            false => Reaction::Changed,
        });
    }
    info!(
        event = "lease_unanswered",
        name, "nobody answers for our lease: taking it"
    );
    Ok(Reaction::Silence { revision })
}

pub(super) fn cannot_encode(name: &str, error: serde_json::Error) -> StoreError {
    StoreError {
        operation: "writing our lease as JSON",
        location: name.to_owned(),
        kind: StoreErrorKind::Permanent,
        source: error.into(),
    }
}

/// The VTEP's MAC in a lease of the vxlan backend.
pub(super) fn mac(attrs: &LeaseAttrs) -> Option<MacAddr> {
    let data = attrs.backend_data.as_ref()?;
    VxlanData::decode(data).ok().map(|data| data.vtep_mac)
}
