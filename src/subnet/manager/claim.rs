//! Whose is a lease with our public address?
//!
//! Two hosts may have one address: behind NAT (Vagrant's 10.0.2.15), by a wrong `--public-ip`,
//! as clones of one image. The second must not take the first one's lease; and a host that
//! lost its files must get its own back. A lease of this program names its writer by two
//! numbers behind flannel's fields: the machine (of `/etc/machine-id`, where there is one) and
//! the instance (of a secret in the state directory and the kernel's boot id).
//!
//! | the lease | what happened | verdict |
//! |---|---|---|
//! | has our instance | a restart, also with another address | ours |
//! | has the MAC of the kernel device on this host | taken over from flannel, files lost or not | ours |
//! | names neither machine nor instance | flannel wrote it; flannel takes it too | ours |
//! | names another machine | another host, alive or not | theirs |
//! | names our machine, another instance | we were rebooted or lost the state directory, or it is a clone, with our state directory or without | ask |
//! | one of us has no machine-id, another instance | the same, on boards without machine-id | ask |
//! | names our machine and no instance | an older version of this program, here or on a clone | ours |
//!
//! To ask is to write the lease's own value with a number more behind it. Peers see the same
//! lease. A daemon that holds it sees its record changed and writes its value anew at once
//! ([`super::keeper`]); one that does not within the store's patience is gone. What cannot be told: a
//! holder that is cut off from the store just then. When it is back, it finds another instance
//! in its record, leaves it alone and raises the alarm.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rand::{Rng, RngExt};
use tokio::time::{Instant, sleep};
use tracing::info;

use super::super::lease::{LeaseAttrs, NodeId, VxlanData};
use super::super::store::{Record, Store, StoreError, WriteOutcome};
use super::acquire::{AcquireError, AcquireRequest, Known};
use crate::wire::MacAddr;

/// Between two looks for the answer.
const LOOK: Duration = Duration::from_millis(150);

/// Whose a lease with our public address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    Ours,
    Theirs,
    /// Its holder has to be asked.
    Unsure,
}

/// Records that were asked about and not answered for: their revision since.
pub(super) type Asked = BTreeMap<String, i64>;

/// Whether a lease has our public address, or we wrote it when we had another.
pub(super) fn concerns_us(request: &AcquireRequest, lease: &Known<'_>) -> bool {
    let Some(attrs) = &lease.attrs else {
        return false;
    };
    attrs.public_ip == request.public_ip || is_our_instance(request, attrs)
}

fn is_our_instance(request: &AcquireRequest, attrs: &LeaseAttrs) -> bool {
    attrs.instance.is_some() && attrs.instance == request.attrs.instance
}

/// The table above.
pub(super) fn claim(request: &AcquireRequest, lease: &Known<'_>, asked: &Asked) -> Claim {
    let Some(attrs) = &lease.attrs else {
        return Claim::Theirs;
    };
    let silent = asked.get(&lease.record.name) == Some(&lease.record.revision);
    let our_device = request.device_mac.is_some() && mac(attrs) == request.device_mac;
    if silent || our_device || is_our_instance(request, attrs) {
        return Claim::Ours;
    }
    match (attrs.node, request.attrs.node) {
        (Some(theirs), Some(ours)) if theirs != ours => Claim::Theirs,
        _ if attrs.instance.is_none() => Claim::Ours,
        _ => Claim::Unsure,
    }
}

/// Asks the holder of a lease whether it lives; `true`: it does. If `false`, the record was
/// written by us or by somebody else meanwhile.
pub(super) async fn ask(
    store: &dyn Store,
    request: &AcquireRequest,
    lease: &Known<'_>,
    asked: &mut Asked,
    rng: &mut (impl Rng + Send),
) -> Result<bool, AcquireError> {
    let (Some(attrs), record) = (&lease.attrs, lease.record) else {
        return Ok(false);
    };
    let question = question(store, attrs, rng.random())?;
    match put_question(store, record, attrs, question, request.ttl).await? {
        Answer::Lives => Ok(true),
        Answer::Changed => Ok(false),
        Answer::Silence { revision } => {
            asked.insert(record.name.clone(), revision);
            Ok(false)
        }
    }
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Lives,
    /// The record is another one now: somebody else writes it too.
    Changed,
    /// Nobody answered; the record with the question has this revision.
    Silence {
        revision: i64,
    },
}

/// A lease's own value with the question behind it.
pub(super) fn question(
    store: &dyn Store,
    attrs: &LeaseAttrs,
    bits: u64,
) -> Result<Bytes, serde_json::Error> {
    let question = attrs.clone().with_challenge(NodeId::of_bits(bits));
    question.encode_as(store.lease_form()).map(Bytes::from)
}

/// Writes a question over a record that says `attrs`, and waits for the answer. What lives
/// for a time goes on to do so, for `ttl`.
pub(super) async fn put_question(
    store: &dyn Store,
    record: &Record,
    attrs: &LeaseAttrs,
    question: Bytes,
    ttl: Duration,
) -> Result<Answer, StoreError> {
    let name = &record.name;
    info!(
        event = "lease_ask",
        name,
        "our lease was written before this boot, or by another host: asking whether its holder lives"
    );
    let ttl = record.expires.then_some(ttl);
    let outcome = store.replace(name, question, record.revision, ttl).await?;
    let WriteOutcome::Written { revision } = outcome else {
        return Ok(Answer::Changed);
    };
    let end = Instant::now() + store.patience();
    while Instant::now() < end {
        sleep(LOOK).await;
        let Some(found) = store.get(name).await? else {
            return Ok(Answer::Changed);
        };
        if found.revision == revision {
            continue;
        }
        // Another one may ask the same at the same time.
        let lives = LeaseAttrs::decode(&found.value)
            .is_ok_and(|found| found.challenge.is_none() && found.instance == attrs.instance);
        return Ok(if lives {
            Answer::Lives
        } else {
            Answer::Changed
        });
    }
    info!(
        event = "lease_unanswered",
        name, "nobody answers for our lease: taking it"
    );
    Ok(Answer::Silence { revision })
}

/// The VTEP's MAC in a lease of the vxlan backend.
pub(super) fn mac(attrs: &LeaseAttrs) -> Option<MacAddr> {
    let data = attrs.backend_data.as_ref()?;
    VxlanData::decode(data).ok().map(|data| data.vtep_mac)
}
