//! Our lease and those of other hosts in the datastore.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::daemon::listed;
use crate::control::RefusedRecord;
use crate::doctor::Finding;
use crate::doctor::facts::Facts;
use crate::subnet::key::SubnetKey;
use crate::subnet::lease::{LeaseAttrs, NodeId};
use crate::subnet::validate::Rejection;

/// A readable record.
struct Lease {
    name: String,
    subnet: Ipv4Net,
    public_ip: Ipv4Addr,
    node: Option<NodeId>,
}

/// The records that are leases; `None` if the list could not be read.
fn leases(facts: &Facts) -> Option<Vec<Lease>> {
    let listing = facts.store.listing.as_ref()?.as_ref().ok()?;
    let read = listing.records.iter().filter_map(|record| {
        let key: SubnetKey = record.name.parse().ok()?;
        let attrs = LeaseAttrs::decode(&record.value).ok()?;
        Some(Lease {
            name: record.name.clone(),
            subnet: key.v4,
            public_ip: attrs.public_ip,
            node: attrs.node,
        })
    });
    Some(read.collect())
}

fn not_read(check: &'static str) -> Finding {
    Finding::skipped(check, "the leases could not be read: see datastore")
}

/// Whether the lease of the subnet we serve exists and is ours.
pub(crate) fn own(facts: &Facts) -> Finding {
    const CHECK: &str = "own-lease";
    let Some(served) = facts.served() else {
        return Finding::skipped(CHECK, "our subnet is unknown");
    };
    let Some(leases) = leases(facts) else {
        return not_read(CHECK);
    };
    let subnet = served.subnet;
    match leases.iter().find(|lease| lease.subnet == subnet) {
        Some(lease) if lease.public_ip == served.public_ip => {
            Finding::ok(CHECK, format!("{subnet} is leased to {}", lease.public_ip))
        }
        Some(lease) => Finding::error(
            CHECK,
            format!(
                "{subnet} is leased to {}, not to {}",
                lease.public_ip, served.public_ip
            ),
            "another host took the subnet after our lease had expired, or this host's address has \
             changed: peers send our packets there",
            "systemctl restart uvxlan (with --allow-renumber to take another subnet), then docker",
        ),
        None if facts.daemon_runs() => Finding::error(
            CHECK,
            format!("there is no lease for {subnet}"),
            "it expired while the datastore was unreachable, or somebody deleted it: other hosts \
             remove their routes to us",
            "uvxlan lease list; the daemon takes the lease again as soon as it can: journalctl -u \
             uvxlan -n 50",
        ),
        None => Finding::ok(
            CHECK,
            format!("{subnet} is free: the lease ended with the daemon"),
        ),
    }
}

/// Whether another host publishes our address.
pub(crate) fn duplicates(facts: &Facts) -> Finding {
    const CHECK: &str = "duplicate-address";
    let served = facts.served();
    let address = match (&served, facts.external()) {
        (Some(served), _) if facts.daemon_runs() => served.public_ip,
        (_, Some(external)) => external.public_ip,
        _ => return Finding::skipped(CHECK, "our public address is unknown"),
    };
    let Some(leases) = leases(facts) else {
        return not_read(CHECK);
    };
    let own_subnet = served.map(|served| served.subnet);
    let with_ours: Vec<_> = leases
        .iter()
        .filter(|lease| lease.public_ip == address)
        .collect();
    let foreign = |lease: &&&Lease| match (lease.node, facts.machine.node) {
        (Some(theirs), Some(ours)) if theirs != ours => true,
        _ => own_subnet.is_some_and(|own| own != lease.subnet),
    };
    let others: Vec<_> = with_ours
        .iter()
        .filter(foreign)
        .map(|lease| lease.name.clone())
        .collect();
    if others.is_empty() && with_ours.len() < 2 {
        return Finding::ok(CHECK, format!("no other host has {address}"));
    }
    let names = match others.is_empty() {
        true => with_ours.iter().map(|lease| lease.name.clone()).collect(),
        false => others,
    };
    Finding::error(
        CHECK,
        format!(
            "{address}, our public address, is also in {}",
            listed(&names)
        ),
        "hosts that share an address (a NAT interface such as Vagrant's 10.0.2.15, a cloned machine) \
         receive each other's packets, and flannel gives them the same subnet",
        format!(
            "on each host choose an interface whose address is unique: --iface=NAME; if the other \
             host no longer exists: uvxlan lease release {}",
            names.first().map(String::as_str).unwrap_or_default()
        ),
    )
}

/// Whether records are refused.
pub(crate) fn refused(facts: &Facts) -> Finding {
    const CHECK: &str = "refused-records";
    let records = match facts.status() {
        Some(status) => &status.refused,
        None if matches!(facts.store.listing, Some(Ok(_))) => &facts.store.refusals,
        None => return not_read(CHECK),
    };
    // duplicate-address names those with our own address.
    let records: Vec<&RefusedRecord> = records
        .iter()
        .filter(|record| record.reason != Rejection::OwnAddress.label())
        .collect();
    let Some(first) = records.first() else {
        return Finding::ok(CHECK, "no record is refused");
    };
    let name = first.name.escape_debug();
    let rival = first.rival.as_ref();
    let rival = rival
        .map(|rival| format!(" ({})", rival.escape_debug()))
        .unwrap_or_default();
    Finding::warning(
        CHECK,
        format!(
            "{} refused; first: {name}: {}{rival}",
            records.len(),
            first.text
        ),
        "there is no route to a node whose record is refused",
        "uvxlan status lists all of them; restart the daemon of the node that wrote the record, or: \
         uvxlan lease release SUBNET",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::DaemonFacts;
    use crate::doctor::{FindingStatus, samples};

    fn add(facts: &mut Facts, name: &str, public_ip: &str) {
        if let Some(Ok(listing)) = &mut facts.store.listing {
            listing.records.push(samples::record(name, public_ip));
        }
    }

    #[test]
    fn a_lease_that_is_gone_or_taken_is_an_error() {
        let mut facts = samples::healthy();
        if let Some(Ok(listing)) = &mut facts.store.listing {
            listing
                .records
                .retain(|record| record.name != "10.5.1.0-24");
        }
        assert!(own(&facts).seen.contains("no lease for 10.5.1.0/24"));
        add(&mut facts, "10.5.1.0-24", "192.0.2.9");
        let finding = own(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.seen.contains("leased to 192.0.2.9"));
    }

    #[test]
    fn a_lease_that_ended_with_the_daemon_is_fine() {
        let mut facts = samples::healthy();
        facts.daemon = DaemonFacts::Absent(String::new());
        if let Some(Ok(listing)) = &mut facts.store.listing {
            listing.records.clear();
        }
        assert_eq!(own(&facts).status, FindingStatus::Ok);
    }

    #[test]
    fn our_address_in_a_lease_of_another_subnet_is_an_error() {
        let mut facts = samples::healthy();
        add(&mut facts, "10.5.7.0-24", "192.0.2.1");
        let finding = duplicates(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.seen.contains("10.5.7.0-24"), "{finding:?}");
        assert!(finding.fix.contains("--iface"));
    }

    #[test]
    fn our_address_in_a_lease_of_another_machine_is_an_error_before_the_first_start() {
        let mut facts = samples::before_the_first_start();
        assert_eq!(duplicates(&facts).status, FindingStatus::Ok);
        let mut record = samples::record("10.5.7.0-24", "192.0.2.1");
        record.value = br#"{"PublicIP":"192.0.2.1","BackendType":"vxlan","Node":12}"#[..].into();
        if let Some(Ok(listing)) = &mut facts.store.listing {
            listing.records.push(record);
        }
        facts.machine.node = NodeId::of_machine("0123456789abcdef0123456789abcdef");
        assert_eq!(duplicates(&facts).status, FindingStatus::Error);
    }

    #[test]
    fn a_refused_record_is_named_with_its_reason() {
        let mut facts = samples::healthy();
        let DaemonFacts::Answers(status) = &mut facts.daemon else {
            panic!()
        };
        let record = RefusedRecord {
            name: "x\u{1b}".into(),
            reason: "key".into(),
            text: "no key".into(),
            rival: None,
        };
        status.refused = vec![
            RefusedRecord {
                reason: "own_address".into(),
                ..record.clone()
            },
            record,
        ];
        let finding = refused(&facts);
        assert_eq!(finding.status, FindingStatus::Warning);
        assert!(finding.seen.starts_with("1 refused"), "{finding:?}");
        assert!(finding.seen.contains("no key") && !finding.seen.contains('\u{1b}'));
    }
}
