//! Flags about the lease, the interface and who may send.

use std::time::Duration;

use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::ReceiveOn;
use crate::daemon::options::parse::{address, boolean, choice, count, network, optional};
use crate::dataplane::ingress_policy::Enforcement;

pub(crate) const FLAGS: &[Flag] = &[
    Flag::new(
        Group::Subnet,
        "iface",
        "Interface for traffic between hosts: name or address",
        |to, text| {
            to.iface.extend(optional(text).map(str::to_owned));
            Ok(())
        },
    )
    .repeated("IFACE")
    .details(
        "May be given several times: the first that is found is used. Without any, the \
         interface of the default route.",
    ),
    Flag::new(
        Group::Subnet,
        "iface-regex",
        "Regular expression for the interface, tried after names",
        |to, text| {
            if !text.is_empty() {
                to.iface_regex.push(text.to_owned());
            }
            Ok(())
        },
    )
    .repeated("REGEX")
    .details(
        "May be given several times. Each is matched with addresses first, then names; one that \
         is no regular expression is passed over, as flannel does.",
    ),
    Flag::new(
        Group::Subnet,
        "iface-can-reach",
        "Use the interface that the route to ADDRESS takes",
        |to, text| {
            to.iface_can_reach = address(
                text,
                "an IPv4 address such as 10.0.0.1, since tunnels go over IPv4",
            )?;
            Ok(())
        },
    )
    .value("ADDRESS")
    .newest(),
    Flag::new(
        Group::Subnet,
        "public-ip",
        "IPv4 address that other hosts reach this one by",
        |to, text| {
            to.public_ip = address(text, "an IPv4 address such as 10.0.0.1")?;
            Ok(())
        },
    )
    .value("ADDRESS"),
    Flag::new(
        Group::Subnet,
        "public-ipv6",
        "IPv6 address that other hosts reach this one by",
        |to, text| {
            to.public_ipv6 = optional(text).map(Into::into);
            Ok(())
        },
    )
    .value("ADDRESS")
    .newest()
    .not_yet(),
    Flag::new(
        Group::Subnet,
        "subnet-lease-renew-margin",
        "Minutes before its expiry that a lease is renewed, 1 to 1439",
        |to, text| {
            to.renew_margin = Duration::from_secs(u64::from(count(text, 1, 1439)?) * 60);
            Ok(())
        },
    )
    .value("MINUTES")
    .default("60"),
    Flag {
        hidden: true,
        ..Flag::new(
            Group::Subnet,
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
        Group::Subnet,
        "mass-delete-hold",
        "Seconds that peers are kept when half of them vanish from the store at once, 0 to 3600",
        |to, text| {
            to.mass_delete_hold = Duration::from_secs(count(text, 0, 3600)?.into());
            Ok(())
        },
    )
    .value("SECONDS")
    .default("30")
    .ours()
    .details("Then the store is read again, and what is still missing goes. 0 is off."),
    Flag::new(
        Group::Subnet,
        "mixed-lengths",
        "Believe leases whose subnets are not of the network's SubnetLen",
        |to, text| {
            to.mixed_lengths = boolean(text)?;
            Ok(())
        },
    )
    .ours()
    .details("For a network whose SubnetLen was changed while leases of the old length live."),
    Flag::new(
        Group::Subnet,
        "allow-renumber",
        "Take another subnet when ours belongs to another host now",
        |to, text| {
            to.allow_renumber = boolean(text)?;
            Ok(())
        },
    )
    .ours()
    .details("Without it the daemon ends: containers with addresses of the old subnet may run."),
    Flag::new(
        Group::Subnet,
        "backend-default",
        "Backend to assume when the network config names none, or udp: vxlan",
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
    .details("Without it such a config is refused: flannel takes it as its udp backend."),
    Flag::new(
        Group::Subnet,
        "receive-on",
        "Where to take packets from peers: any, public, interface",
        |to, text| {
            let words = [
                ("any", ReceiveOn::Any),
                ("public", ReceiveOn::Public),
                ("interface", ReceiveOn::Interface),
            ];
            to.receive_on = choice(text, &words)?;
            Ok(())
        },
    )
    .value("WHERE")
    .default("any")
    .ours()
    .details(
        "any: to each address of the host and over each interface, as the kernel's vxlan. public: \
         to the published address. interface: to that address, and over the interface that has \
         it; what comes over another is dropped as in_other_interface. Not for hosts whose peers' \
         packets take another way in than the way out (asymmetric routes, several uplinks).",
    ),
    Flag::new(
        Group::Subnet,
        "peer-check",
        "What to do with packets that do not belong: enforce, log, off",
        |to, text| {
            let words = [
                ("enforce", Enforcement::Enforce),
                ("log", Enforcement::Log),
                ("off", Enforcement::Off),
            ];
            to.peer_check = choice(text, &words)?;
            Ok(())
        },
    )
    .value("MODE")
    .default("enforce")
    .ours()
    .details(
        "A packet belongs when its sender has a lease, its inner source is in that lease's subnet \
         (or outside of the network, see --strict-sources), and its inner destination is in the \
         own subnet. log counts and lets pass, for peers that send from other addresses than \
         they publish.",
    ),
    Flag::new(
        Group::Subnet,
        "socket-filter",
        "Whether the kernel drops strangers' packets already: auto, off",
        |to, text| {
            to.socket_filter = choice(text, &[("auto", true), ("off", false)])?;
            Ok(())
        },
    )
    .value("MODE")
    .default("auto")
    .ours()
    .details(
        "Of --peer-check=enforce, as long as there are some hundreds of peers at most. What is \
         dropped so is counted as socket_drops, not by its reason.",
    ),
    Flag::new(
        Group::Subnet,
        "allow-peer",
        "Take packets from this address or network without a lease",
        |to, text| {
            to.allow_peer.push(network(text)?);
            Ok(())
        },
    )
    .repeated("CIDR")
    .ours(),
    Flag::new(
        Group::Subnet,
        "forward-extra",
        "Let peers send to this network beside the own subnet",
        |to, text| {
            to.forward_extra.push(network(text)?);
            Ok(())
        },
    )
    .repeated("CIDR")
    .ours(),
    Flag::new(
        Group::Subnet,
        "strict-sources",
        "Refuse inner sources outside of the network, too",
        |to, text| {
            to.strict_sources = boolean(text)?;
            Ok(())
        },
    )
    .ours(),
];
