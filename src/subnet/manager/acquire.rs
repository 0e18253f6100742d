//! How a host gets its subnet (flannel `local_manager.go`, `tryAcquireLease`).

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use ipnet::Ipv4Net;
use rand::Rng;
use tracing::{info, warn};

use super::super::allocate::{OutOfSubnets, allocate, compatible};
use super::super::config::NetworkConfig;
use super::super::key::SubnetKey;
use super::super::lease::Lease;
use super::super::store::{Listing, Record, Store, StoreError, WriteOutcome};
use super::ownership::{
    ExistingLease, Ownership, Unanswered, concerns_us, is_holder_alive, ownership,
};
use super::peers::SHORTEST_MIXED;
use super::request::AcquireRequest;

/// Tries after lost races: flannel's `raceRetries`.
const MAX_TRIES: usize = 10;

/// An acquired lease.
#[derive(Debug, Clone)]
pub struct Acquired {
    /// Our lease.
    pub lease: Lease,
    /// The value as written.
    pub value: Bytes,
    /// The request's time to live.
    pub ttl: Duration,
    /// All leases just before ours was written: a watch continues from its revision.
    pub listing: Listing,
}

impl Acquired {
    /// Whether this comes from the offline cache and not from the store, where no record has
    /// revision 0. Then the lease is not confirmed yet, and the store's list replaces this one as
    /// soon as the store answers.
    #[must_use]
    pub(super) const fn is_cached(&self) -> bool {
        self.lease.revision == 0
    }
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// The store failed.
    #[error("failed to acquire lease: {0}")]
    Store(#[from] StoreError),
    /// Our subnet is not available, and another one is not wanted.
    #[error(
        "{subnet} is in use on this host, and containers may have its addresses, but {reason}; or \
         start with --allow-renumber to take another subnet, and restart the containers"
    )]
    Renumber {
        /// Our subnet.
        subnet: Ipv4Net,
        /// Why it is not available.
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
    /// Another host was faster each time.
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

/// Why the subnet in use on this host is not available.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Renumbering {
    /// Another host's lease overlaps it.
    #[error(
        "it belongs to another host now, by record {0}: remove that record (uvxlan lease \
         release {0})"
    )]
    Taken(String),
    /// The lease with our public address is of another subnet.
    #[error(
        "record {0} gives this host's public IP another subnet: remove that record if it is a \
         former host's (uvxlan lease release {0})"
    )]
    Other(String),
    /// The network config allows other subnets only.
    #[error("the network config no longer allows it: restore the former config")]
    Unfit,
}

fn is_usable(lease: &ExistingLease<'_>, config: &NetworkConfig) -> bool {
    !lease.dual_stack && compatible(config, lease.subnet)
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Acquires a lease by flannel's rules: the one with our public IP if the config still allows it
/// (a reservation stays without TTL), else the previous subnet if no other lease overlaps it, else
/// a free one. Our own earlier record is written again even if it is equal, so that it lives as
/// long as this process and not the earlier one.
///
/// `ownership` decides whether a lease with our public IP is ours.
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
    let mut unanswered = Unanswered::default();
    for _ in 0..MAX_TRIES {
        let listing = store.list().await?;
        let lease = attempt(
            store,
            config,
            request,
            &value,
            &listing,
            &mut unanswered,
            rng,
        )
        .await?;
        if let Some(lease) = lease {
            return Ok(Acquired {
                lease,
                value,
                ttl: request.ttl,
                listing,
            });
        }
    }
    Err(AcquireError::Conflicts { tries: MAX_TRIES })
}

/// One try; `None` if it has to be repeated, mostly because somebody else was faster.
async fn attempt(
    store: &dyn Store,
    config: &NetworkConfig,
    request: &AcquireRequest,
    value: &Bytes,
    listing: &Listing,
    unanswered: &mut Unanswered,
    rng: &mut (impl Rng + Send),
) -> Result<Option<Lease>, AcquireError> {
    let (mut ours, others): (Vec<_>, Vec<_>) =
        ExistingLease::all_of(listing).partition(|lease| concerns_us(request, lease));
    refuse_other_host(request, &ours, unanswered)?;
    // A record that peers refuse does not occupy its subnet either.
    let taken: Vec<_> = others
        .iter()
        .filter(|lease| occupies_subnet(config, request, lease.subnet))
        .collect();
    let in_use = request.in_use.map(|subnet| subnet.trunc());
    let earlier = in_use.or(request.previous.map(|subnet| subnet.trunc()));
    ours.sort_by_key(|lease| {
        (
            !is_usable(lease, config),
            Some(lease.subnet) != earlier,
            lease.record.created,
        )
    });
    let best = ours.first().filter(|lease| is_usable(lease, config));
    refuse_renumbering(config, request, best, &ours, &taken)?;
    for lease in &ours {
        if ownership(request, lease, unanswered) != Ownership::Unclear {
            continue;
        }
        if is_holder_alive(store, request, lease, unanswered, rng).await? {
            return Err(in_use_by(request, lease));
        }
        // The record was written: list again.
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
            name, "the network config no longer allows our lease: deleting it"
        );
        if store.delete(name, lease.record.revision).await? == WriteOutcome::Conflict {
            return Ok(None);
        }
    }
    let taken: Vec<_> = taken.iter().map(|lease| lease.subnet).collect();
    let subnet = match previous(config, earlier, &taken) {
        Some(subnet) => subnet,
        // flannel's nodes may accept a lease of another length: avoid its subnet if there is room.
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

/// Whether peers may accept a lease of this subnet. A record that they refuse for its key must
/// not keep anybody from starting; its value may be corrected at any time, so it does not count.
fn occupies_subnet(config: &NetworkConfig, request: &AcquireRequest, subnet: Ipv4Net) -> bool {
    let length = match request.mixed_lengths {
        true => subnet.prefix_len() >= SHORTEST_MIXED,
        false => subnet.prefix_len() == config.subnet_len,
    };
    length && config.network.contains(&subnet)
}

fn in_use_by(request: &AcquireRequest, lease: &ExistingLease<'_>) -> AcquireError {
    AcquireError::AddressInUse {
        public_ip: request.public_ip,
        record: lease.record.name.clone(),
    }
}

/// Does not take a lease with our address that another host wrote.
fn refuse_other_host(
    request: &AcquireRequest,
    ours: &[ExistingLease<'_>],
    unanswered: &Unanswered,
) -> Result<(), AcquireError> {
    let theirs =
        |lease: &&ExistingLease<'_>| ownership(request, lease, unanswered) == Ownership::Theirs;
    match ours.iter().find(theirs) {
        Some(lease) => Err(in_use_by(request, lease)),
        None => Ok(()),
    }
}

/// Does not change the subnet under running containers because of the store. `best` is the lease
/// of `ours` that would be taken.
fn refuse_renumbering(
    config: &NetworkConfig,
    request: &AcquireRequest,
    best: Option<&ExistingLease<'_>>,
    ours: &[ExistingLease<'_>],
    taken: &[&ExistingLease<'_>],
) -> Result<(), AcquireError> {
    let Some(subnet) = request.in_use.map(|subnet| subnet.trunc()) else {
        return Ok(());
    };
    let name = |lease: &ExistingLease<'_>| lease.record.name.clone();
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

/// The lease of a former holder of our new address, if it is older than ours: peers would prefer
/// that one.
fn hides<'a, 'b>(
    request: &AcquireRequest,
    best: &ExistingLease<'_>,
    ours: &'a [ExistingLease<'b>],
) -> Option<&'a ExistingLease<'b>> {
    let moved = |lease: &ExistingLease<'_>| {
        let attrs = lease.attrs.as_ref();
        attrs.is_some_and(|attrs| attrs.public_ip != request.public_ip)
    };
    ours.iter()
        .filter(|_| moved(best))
        .find(|lease| !moved(lease) && lease.record.created < best.record.created)
}

/// Deletes leases of this program with our public address other than the one that was taken:
/// peers would accept only the oldest.
async fn remove_superseded(store: &dyn Store, leases: &[ExistingLease<'_>]) {
    for ExistingLease { record, attrs, .. } in leases {
        let of_this_program = attrs.as_ref().is_some_and(|attrs| attrs.instance.is_some());
        if of_this_program && record.expires {
            info!(
                event = "lease_superseded",
                name = record.name,
                "deleting another lease of this host"
            );
            if let Err(error) = store.delete(&record.name, record.revision).await {
                warn!(event = "lease_superseded", name = record.name, %error, "cannot delete it; it stays for now");
            }
        }
    }
}

async fn reuse(
    store: &dyn Store,
    request: &AcquireRequest,
    value: &Bytes,
    lease: &ExistingLease<'_>,
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

/// The previous subnet, if the config allows it and no other lease overlaps it: an earlier flannel
/// took it from its new owner (flannel issue 1289).
fn previous(
    config: &NetworkConfig,
    earlier: Option<Ipv4Net>,
    taken: &[Ipv4Net],
) -> Option<Ipv4Net> {
    let subnet = earlier?;
    if !compatible(config, subnet) {
        warn!(event = "previous_subnet_misfit", %subnet, "the network config no longer allows our previous subnet");
        return None;
    }
    if taken.iter().any(|other| overlap(*other, subnet)) {
        warn!(event = "previous_subnet_taken", %subnet, "our previous subnet belongs to another host now");
        return None;
    }
    Some(subnet)
}
