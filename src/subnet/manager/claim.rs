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
//! ([`super::keeper`]); one that does not within [`PATIENCE`] is gone. What cannot be told: a
//! holder that is cut off from the store just then. When it is back, it finds another instance
//! in its record, leaves it alone and raises the alarm.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rand::{Rng, RngExt};
use tokio::time::{Instant, sleep};
use tracing::info;

use super::super::lease::{LeaseAttrs, NodeId, VxlanData};
use super::super::store::{Store, WriteOutcome};
use super::acquire::{AcquireError, AcquireRequest, Known};
use crate::wire::MacAddr;

/// How long a holder has for its answer.
pub const PATIENCE: Duration = Duration::from_secs(3);
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
    let name = &record.name;
    info!(
        event = "lease_ask",
        name,
        "our lease was written before this boot, or by another host: asking whether its holder lives"
    );
    let challenge = NodeId::of_bits(rng.random());
    let question = attrs.clone().with_challenge(challenge);
    let question = Bytes::from(question.encode_as(store.lease_form())?);
    let ttl = record.expires.then_some(request.ttl);
    let outcome = store.replace(name, question, record.revision, ttl).await?;
    let WriteOutcome::Written { revision } = outcome else {
        return Ok(false);
    };
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        sleep(LOOK).await;
        let Some(found) = store.get(name).await? else {
            return Ok(false);
        };
        if found.revision == revision {
            continue;
        }
        // Another one may ask the same at the same time.
        let answer = LeaseAttrs::decode(&found.value);
        return Ok(
            answer.is_ok_and(|found| found.challenge.is_none() && found.instance == attrs.instance)
        );
    }
    info!(
        event = "lease_unanswered",
        name, "nobody answers for our lease: taking it"
    );
    asked.insert(name.clone(), revision);
    Ok(false)
}

/// The VTEP's MAC in a lease of the vxlan backend.
pub(super) fn mac(attrs: &LeaseAttrs) -> Option<MacAddr> {
    let data = attrs.backend_data.as_ref()?;
    VxlanData::decode(data).ok().map(|data| data.vtep_mac)
}
