//! Flags about the network config and the leases.

use std::time::Duration;

use super::put;
use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::parse::{boolean, choice, count, optional};

pub(crate) const FLAGS: &[Flag] = &[
    Flag::new(
        Group::Lease,
        "subnet-lease-renew-margin",
        "Minutes before its expiry at which a lease is renewed, 1 to 1439",
        |to, text| {
            let minutes = count(text, 1, 1439)?;
            to.renew_margin = Duration::from_secs(u64::from(minutes) * 60);
            Ok(())
        },
    )
    .value("MINUTES")
    .default("60"),
    Flag {
        hidden: true,
        ..Flag::new(
            Group::Lease,
            "lease-ttl",
            "Time to live of a lease, for tests",
            |to, text| {
                to.lease_ttl = Duration::from_secs(count(text, 1, 365 * 86_400)?.into());
                Ok(())
            },
        )
        .value("SECONDS")
        .default("86400")
        .ours()
    },
    Flag::new(
        Group::Lease,
        "mass-delete-hold",
        "Seconds to keep peers when half of them vanish from the datastore at once, 0 to 3600",
        |to, text| {
            to.mass_delete_hold = Duration::from_secs(count(text, 0, 3600)?.into());
            Ok(())
        },
    )
    .value("SECONDS")
    .default("30")
    .ours()
    .details(
        "After that time the list is read again, and the peers that are still missing are removed. \
         This also applies when a datastore that was set up anew lists one peer less. 0 turns it \
         off.",
    ),
    Flag::new(
        Group::Lease,
        "mixed-lengths",
        "Accept leases whose subnets have another length than the network's SubnetLen",
        |to, text| put(&mut to.mixed_lengths, boolean(text)),
    )
    .ours()
    .details("For a network whose SubnetLen was changed while leases of the old length exist."),
    Flag::new(
        Group::Lease,
        "allow-renumber",
        "Take another subnet if ours now belongs to another host",
        |to, text| put(&mut to.allow_renumber, boolean(text)),
    )
    .ours()
    .details(
        "Without it the daemon exits, because containers with addresses of the old subnet may \
         still be running.",
    ),
    Flag::new(
        Group::Lease,
        "backend-default",
        "Backend to assume if the network config names none, or udp: vxlan",
        |to, text| {
            to.backend_default = match optional(text) {
                None => None,
                Some(text) => Some(choice(text, &[("vxlan", "vxlan")])?.to_owned()),
            };
            Ok(())
        },
    )
    .value("TYPE")
    .ours()
    .details("Without it such a config is refused, because flannel would use its udp backend."),
];
