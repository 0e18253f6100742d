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
use super::super::lease::{Lease, LeaseAttrs, NodeId};
use super::super::store::{Listing, Record, Store, StoreError, WriteOutcome};

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
    /// The subnet that containers of this host may have addresses of: where another host
    /// has it now, [`acquire()`] fails instead of taking another one.
    pub in_use: Option<Ipv4Net>,
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

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// The store failed.
    #[error("failed to acquire lease: {0}")]
    Store(#[from] StoreError),
    /// Our subnet belongs to another host.
    #[error(
        "our subnet {subnet} belongs to another host now, by record {record}, and containers \
         here may have its addresses: remove that record (uvxlan lease release {record}), or \
         start with --allow-renumber to take another subnet and restart the containers"
    )]
    Renumber {
        /// Our subnet.
        subnet: Ipv4Net,
        /// The record that has it.
        record: String,
    },
    /// Another machine has a lease with our public address.
    #[error(
        "another machine holds lease {record} with our public IP {public_ip}: give each host \
         an address of its own (--public-ip, --iface); if that machine is gone, or this one \
         was installed anew, remove the record (uvxlan lease release {record})"
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

/// A record whose key is a subnet's.
struct Known<'a> {
    subnet: Ipv4Net,
    /// Has an IPv6 subnet too, which this program does not lease.
    dual_stack: bool,
    record: &'a Record,
    public_ip: Option<Ipv4Addr>,
    node: Option<NodeId>,
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Acquires a lease by flannel's rules: the one with our public IP if the config still
/// allows it (a reservation stays without TTL), else the previous subnet if nobody has
/// any part of it, else a free one. Our own earlier record is written anew even if it is
/// equal, so that it lives as long as this process and not the earlier one.
///
/// # Errors
/// See [`AcquireError`].
pub async fn acquire(
    store: &dyn Store,
    config: &NetworkConfig,
    request: &AcquireRequest,
    rng: &mut (impl Rng + Send),
) -> Result<Acquired, AcquireError> {
    let value = Bytes::from(request.attrs.encode_as(store.lease_form())?);
    for _ in 0..TRIES {
        let listing = store.list().await?;
        let lease = attempt(store, config, request, &value, &listing, rng).await?;
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

/// One try; `None` when somebody else was faster.
async fn attempt(
    store: &dyn Store,
    config: &NetworkConfig,
    request: &AcquireRequest,
    value: &Bytes,
    listing: &Listing,
    rng: &mut (impl Rng + Send),
) -> Result<Option<Lease>, AcquireError> {
    let (mut ours, others): (Vec<_>, Vec<_>) = known(listing)
        .into_iter()
        .partition(|lease| lease.public_ip == Some(request.public_ip));
    refuse_other_machine(request, &ours)?;
    let usable = |lease: &Known<'_>| !lease.dual_stack && compatible(config, lease.subnet);
    let earlier = request.previous.map(|subnet| subnet.trunc());
    ours.sort_by_key(|lease| {
        (
            !usable(lease),
            Some(lease.subnet) != earlier,
            lease.record.created,
        )
    });
    if let Some(lease) = ours.first().filter(|lease| usable(lease)) {
        return reuse(store, request, value, lease).await;
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
    refuse_renumbering(config, request, &others)?;
    // A record outside the network is refused as a peer, so it takes no place either.
    let taken: Vec<_> = others
        .iter()
        .map(|lease| lease.subnet)
        .filter(|subnet| config.network.contains(subnet))
        .collect();
    let subnet = match previous(config, request, &taken) {
        Some(subnet) => subnet,
        None => allocate(config, &taken, rng)?,
    };
    let name = SubnetKey::from(subnet).to_string();
    let outcome = store.create(&name, value.clone(), request.ttl).await?;
    Ok(lease_of(request, subnet, outcome, false))
}

/// A lease with our address that another machine of ours wrote is not taken from it.
/// flannel's leases name no machine; they are taken, as flannel does.
fn refuse_other_machine(request: &AcquireRequest, ours: &[Known<'_>]) -> Result<(), AcquireError> {
    let Some(us) = request.attrs.node else {
        return Ok(());
    };
    match ours
        .iter()
        .find(|lease| lease.node.is_some_and(|node| node != us))
    {
        Some(lease) => Err(AcquireError::AddressInUse {
            public_ip: request.public_ip,
            record: lease.record.name.clone(),
        }),
        None => Ok(()),
    }
}

/// A subnet under running containers does not change because another host took it.
fn refuse_renumbering(
    config: &NetworkConfig,
    request: &AcquireRequest,
    others: &[Known<'_>],
) -> Result<(), AcquireError> {
    let Some(subnet) = request.in_use.map(|subnet| subnet.trunc()) else {
        return Ok(());
    };
    let rival = others
        .iter()
        .find(|other| config.network.contains(&other.subnet) && overlap(other.subnet, subnet));
    match rival {
        Some(rival) if compatible(config, subnet) => Err(AcquireError::Renumber {
            subnet,
            record: rival.record.name.clone(),
        }),
        _ => Ok(()),
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
    request: &AcquireRequest,
    taken: &[Ipv4Net],
) -> Option<Ipv4Net> {
    let subnet = request.previous?.trunc();
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
            let attrs = LeaseAttrs::decode(&record.value).ok();
            let node = attrs.as_ref().and_then(|attrs| attrs.node);
            Some(Known {
                subnet: key.v4,
                dual_stack: key.v6.is_some(),
                record,
                public_ip: attrs.map(|attrs| attrs.public_ip),
                node,
            })
        })
        .collect()
}
