//! How a host comes to its subnet (flannel `local_manager.go`, `tryAcquireLease`).

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use ipnet::Ipv4Net;
use rand::Rng;
use tracing::{info, warn};

use super::super::allocate::{OutOfSubnets, allocate, compatible};
use super::super::config::NetworkConfig;
use super::super::key::SubnetKey;
use super::super::lease::{Lease, LeaseAttrs};
use super::super::store::{Listing, Record, Store, StoreError, WriteOutcome};
use super::claim::{self, Asked, Claim};
use super::peers::SHORTEST_MIXED;
use crate::wire::MacAddr;

/// Tries after lost races, as flannel's `raceRetries`.
const TRIES: usize = 10;

/// What a host wants.
#[derive(Debug, Clone)]
pub struct AcquireRequest {
    /// The address under which other hosts reach this one; decides which lease is ours.
    pub public_ip: Ipv4Addr,
    /// What to publish.
    pub attrs: LeaseAttrs,
    /// The subnet of the host's earlier life, from its files.
    pub previous: Option<Ipv4Net>,
    /// The subnet that containers of this host may have addresses of: where it cannot be
    /// had, [`acquire()`] fails instead of taking another one.
    pub in_use: Option<Ipv4Net>,
    /// MAC of flannel's kernel device, if one is on this host: a lease with it is ours.
    pub device_mac: Option<MacAddr>,
    /// Whether subnets of other lengths than the config's are believed (`--mixed-lengths`),
    /// so that they take a place.
    pub mixed_lengths: bool,
    /// How long the lease outlives the host; flannel's is 24 h.
    pub ttl: Duration,
}

/// An acquired lease.
#[derive(Debug, Clone)]
pub struct Acquired {
    /// Our lease.
    pub lease: Lease,
    /// The value as written.
    pub value: Bytes,
    /// The request's time to live.
    pub ttl: Duration,
    /// All leases just before ours was written: a watch goes on from its revision.
    pub listing: Listing,
}

impl Acquired {
    /// Whether this is from the offline cache, not from the store: no record of the store has
    /// revision 0. The lease is unconfirmed then, and the store's list replaces this one as soon
    /// as it is read.
    #[must_use]
    pub const fn is_cached(&self) -> bool {
        self.lease.revision == 0
    }
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// The store failed.
    #[error("failed to acquire lease: {0}")]
    Store(#[from] StoreError),
    /// Our subnet cannot be had, and another one is not wanted.
    #[error(
        "{subnet} is in use on this host, and containers may have its addresses, but {reason}; or \
         start with --allow-renumber to take another subnet, and restart the containers"
    )]
    Renumber {
        /// Our subnet.
        subnet: Ipv4Net,
        /// Why it cannot be had.
        reason: Renumbering,
    },
    /// Another host has a lease with our public address.
    #[error(
        "another host holds lease {record} with our public IP {public_ip}: give each host \
         an address of its own (--public-ip, --iface); if that host is gone, \
         remove the record (uvxlan lease release {record})"
    )]
    AddressInUse {
        /// Our public address.
        public_ip: Ipv4Addr,
        /// The record.
        record: String,
    },
    /// No subnet is free.
    #[error(transparent)]
    OutOfSubnets(#[from] OutOfSubnets),
    /// Others were faster each time.
    #[error(
        "Max retries reached trying to acquire a subnet: in {tries} tries, each subnet was \
         changed by another host at the same moment"
    )]
    Conflicts {
        /// Tries made.
        tries: usize,
    },
    /// The attributes can't be written as JSON.
    #[error("writing our lease as JSON: {0}")]
    Encode(#[from] serde_json::Error),
}

/// Why the subnet in use on this host cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Renumbering {
    /// Another host's record has it, or a part of it.
    #[error(
        "it belongs to another host now, by record {0}: remove that record (uvxlan lease \
         release {0})"
    )]
    Taken(String),
    /// The lease that has our public address is of another subnet.
    #[error(
        "record {0} gives this host's public IP another subnet: remove that record if it is a \
         former host's (uvxlan lease release {0})"
    )]
    Other(String),
    /// The network config hands out other subnets.
    #[error("the network config does not hand it out any more: put the former config back")]
    Unfit,
}

/// A record whose key is a subnet's.
pub(super) struct Known<'a> {
    pub(super) subnet: Ipv4Net,
    /// Has an IPv6 subnet too, which this program does not lease.
    dual_stack: bool,
    pub(super) record: &'a Record,
    pub(super) attrs: Option<LeaseAttrs>,
}

impl Known<'_> {
    fn is_usable(&self, config: &NetworkConfig) -> bool {
        !self.dual_stack && compatible(config, self.subnet)
    }
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Acquires a lease by flannel's rules: the one with our public IP if the config still
/// allows it (a reservation stays without TTL), else the previous subnet if nobody has
/// any part of it, else a free one. Our own earlier record is written anew even if it is
/// equal, so that it lives as long as this process and not the earlier one.
///
/// Whether a lease with our public IP is ours, is judged by [`claim`].
///
/// # Errors
/// See [`AcquireError`]. After [`AcquireError::Renumber`] and
/// [`AcquireError::AddressInUse`], the store is as it was.
pub async fn acquire(
    store: &dyn Store,
    config: &NetworkConfig,
    request: &AcquireRequest,
    rng: &mut (impl Rng + Send),
) -> Result<Acquired, AcquireError> {
    let value = Bytes::from(request.attrs.encode_as(store.lease_form())?);
    let mut asked = Asked::default();
    for _ in 0..TRIES {
        let listing = store.list().await?;
        let lease = attempt(store, config, request, &value, &listing, &mut asked, rng).await?;
        if let Some(lease) = lease {
            return Ok(Acquired {
                lease,
                value,
                ttl: request.ttl,
                listing,
            });
        }
    }
    Err(AcquireError::Conflicts { tries: TRIES })
}

/// One try; `None` when it is to be begun anew, mostly because somebody else was faster.
async fn attempt(
    store: &dyn Store,
    config: &NetworkConfig,
    request: &AcquireRequest,
    value: &Bytes,
    listing: &Listing,
    asked: &mut Asked,
    rng: &mut (impl Rng + Send),
) -> Result<Option<Lease>, AcquireError> {
    let (mut ours, others): (Vec<_>, Vec<_>) = known(listing)
        .into_iter()
        .partition(|lease| claim::concerns_us(request, lease));
    refuse_other_host(request, &ours, asked)?;
    // A record that peers refuse takes no place either.
    let taken: Vec<_> = others
        .iter()
        .filter(|lease| takes_a_place(config, request, lease.subnet))
        .collect();
    let in_use = request.in_use.map(|subnet| subnet.trunc());
    let earlier = in_use.or(request.previous.map(|subnet| subnet.trunc()));
    ours.sort_by_key(|lease| {
        (
            !lease.is_usable(config),
            Some(lease.subnet) != earlier,
            lease.record.created,
        )
    });
    let best = ours.first().filter(|lease| lease.is_usable(config));
    refuse_renumbering(config, request, best, &ours, &taken)?;
    for lease in &ours {
        if claim::claim(request, lease, asked) != Claim::Unsure {
            continue;
        }
        if claim::ask(store, request, lease, asked, rng).await? {
            return Err(in_use_by(request, lease));
        }
        // The record was written: read again.
        return Ok(None);
    }
    if let Some(lease) = best {
        let taken = reuse(store, request, value, lease).await?;
        if taken.is_some() {
            remove_superseded(store, &ours[1..]).await;
        }
        return Ok(taken);
    }
    for lease in ours {
        let name = &lease.record.name;
        info!(
            event = "lease_misfit",
            name, "our lease does not fit the network config any more: deleting it"
        );
        if store.delete(name, lease.record.revision).await? == WriteOutcome::Conflict {
            return Ok(None);
        }
    }
    let taken: Vec<_> = taken.iter().map(|lease| lease.subnet).collect();
    let subnet = match previous(config, earlier, &taken) {
        Some(subnet) => subnet,
        // Flannel may believe in a lease of another length, so if there is room beside it ...
        None => {
            let all: Vec<_> = others.iter().map(|lease| lease.subnet).collect();
            let beside = allocate(config, &all, rng);
            beside.or_else(|OutOfSubnets { .. }| allocate(config, &taken, rng))?
        }
    };
    let name = SubnetKey::from(subnet).to_string();
    let outcome = store.create(&name, value.clone(), request.ttl).await?;
    Ok(lease_of(request, subnet, outcome, false))
}

/// Whether peers may believe in a lease of this subnet. What they refuse for its key must
/// not keep anybody from starting; a value may be mended at any time.
fn takes_a_place(config: &NetworkConfig, request: &AcquireRequest, subnet: Ipv4Net) -> bool {
    let length = match request.mixed_lengths {
        true => subnet.prefix_len() >= SHORTEST_MIXED,
        false => subnet.prefix_len() == config.subnet_len,
    };
    length && config.network.contains(&subnet)
}

fn in_use_by(request: &AcquireRequest, lease: &Known<'_>) -> AcquireError {
    AcquireError::AddressInUse {
        public_ip: request.public_ip,
        record: lease.record.name.clone(),
    }
}

/// A lease with our address that another host of ours wrote is not taken from it.
fn refuse_other_host(
    request: &AcquireRequest,
    ours: &[Known<'_>],
    asked: &Asked,
) -> Result<(), AcquireError> {
    let theirs = |lease: &&Known<'_>| claim::claim(request, lease, asked) == Claim::Theirs;
    match ours.iter().find(theirs) {
        Some(lease) => Err(in_use_by(request, lease)),
        None => Ok(()),
    }
}

/// A subnet under running containers does not change because the store says so. `best` is
/// the lease of `ours` that would be taken.
fn refuse_renumbering(
    config: &NetworkConfig,
    request: &AcquireRequest,
    best: Option<&Known<'_>>,
    ours: &[Known<'_>],
    taken: &[&Known<'_>],
) -> Result<(), AcquireError> {
    let Some(subnet) = request.in_use.map(|subnet| subnet.trunc()) else {
        return Ok(());
    };
    let name = |lease: &Known<'_>| lease.record.name.clone();
    let reason = if !compatible(config, subnet) {
        Some(Renumbering::Unfit)
    } else if let Some(best) = best {
        let other = Some(best).filter(|best| best.subnet != subnet);
        let other = other.or_else(|| hides(request, best, ours));
        other.map(|other| Renumbering::Other(name(other)))
    } else {
        let rival = taken.iter().find(|other| overlap(other.subnet, subnet));
        rival.map(|rival| Renumbering::Taken(name(rival)))
    };
    match reason {
        Some(reason) => Err(AcquireError::Renumber { subnet, reason }),
        None => Ok(()),
    }
}

/// The lease of a former holder of our new address that is older than ours: peers would go on
/// to believe that one.
fn hides<'a, 'b>(
    request: &AcquireRequest,
    best: &Known<'_>,
    ours: &'a [Known<'b>],
) -> Option<&'a Known<'b>> {
    let moved = |lease: &Known<'_>| {
        let attrs = lease.attrs.as_ref();
        attrs.is_some_and(|attrs| attrs.public_ip != request.public_ip)
    };
    ours.iter()
        .filter(|_| moved(best))
        .find(|lease| !moved(lease) && lease.record.created < best.record.created)
}

/// Leases of this program with our public address beside the one that was taken: peers
/// would believe the oldest alone.
async fn remove_superseded(store: &dyn Store, leases: &[Known<'_>]) {
    for Known { record, attrs, .. } in leases {
        let of_this_program = attrs.as_ref().is_some_and(|attrs| attrs.instance.is_some());
        if of_this_program && record.expires {
            info!(
                event = "lease_superseded",
                name = record.name,
                "deleting another lease of this host"
            );
            if let Err(error) = store.delete(&record.name, record.revision).await {
                warn!(event = "lease_superseded", name = record.name, %error, "it stays for now");
            }
        }
    }
}

async fn reuse(
    store: &dyn Store,
    request: &AcquireRequest,
    value: &Bytes,
    lease: &Known<'_>,
) -> Result<Option<Lease>, AcquireError> {
    let reserved = !lease.record.expires;
    let ttl = (!reserved).then_some(request.ttl);
    let Record { name, revision, .. } = lease.record;
    let outcome = store.replace(name, value.clone(), *revision, ttl).await?;
    Ok(lease_of(request, lease.subnet, outcome, reserved))
}

fn lease_of(
    request: &AcquireRequest,
    subnet: Ipv4Net,
    outcome: WriteOutcome,
    reserved: bool,
) -> Option<Lease> {
    let attrs = request.attrs.clone();
    match outcome {
        WriteOutcome::Written { revision } => Some(Lease {
            subnet,
            attrs,
            revision,
            reserved,
        }),
        WriteOutcome::Conflict => None,
    }
}

/// The previous subnet, where the config allows it and nobody has any part of it: an
/// earlier flannel took it from whoever had it (flannel issue 1289).
fn previous(
    config: &NetworkConfig,
    earlier: Option<Ipv4Net>,
    taken: &[Ipv4Net],
) -> Option<Ipv4Net> {
    let subnet = earlier?;
    if !compatible(config, subnet) {
        warn!(event = "previous_subnet_misfit", %subnet, "our previous subnet does not fit the network config any more");
        return None;
    }
    if taken.iter().any(|other| overlap(*other, subnet)) {
        warn!(event = "previous_subnet_taken", %subnet, "our previous subnet belongs to another host now");
        return None;
    }
    Some(subnet)
}

fn known(listing: &Listing) -> Vec<Known<'_>> {
    listing
        .records
        .iter()
        .filter_map(|record| {
            let key: SubnetKey = record.name.parse().ok()?;
            Some(Known {
                subnet: key.v4,
                dual_stack: key.v6.is_some(),
                record,
                attrs: LeaseAttrs::decode(&record.value).ok(),
            })
        })
        .collect()
}
