//! Flags about the interface to the other hosts and its addresses.

use super::put;
use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::ReceiveOn;
use crate::daemon::options::parse::{address, choice, optional};

pub(crate) const FLAGS: &[Flag] = &[
    Flag::new(
        Group::Interface,
        "iface",
        "Interface for traffic between hosts: name or address",
        |to, text| {
            to.iface.extend(optional(text).map(str::to_owned));
            Ok(())
        },
    )
    .repeated("IFACE")
    .details(
        "The first that exists is used. Default: the interface of \
         the default route.",
    ),
    Flag::new(
        Group::Interface,
        "iface-regex",
        "Regular expression to find the interface by, tried after --iface",
        |to, text| {
            if !text.is_empty() {
                to.iface_regex.push(text.to_owned());
            }
            Ok(())
        },
    )
    .repeated("REGEX")
    .details(
        "Each is matched against addresses, then against names. One \
         that is not a valid expression is skipped, as in flannel.",
    ),
    Flag::new(
        Group::Interface,
        "iface-can-reach",
        "Use the interface of the route to ADDRESS",
        |to, text| {
            let what = "an IPv4 address such as 10.0.0.1, since tunnels run over IPv4";
            put(&mut to.iface_can_reach, address(text, what))
        },
    )
    .value("ADDRESS")
    .newer(),
    Flag::new(
        Group::Interface,
        "public-ip",
        "IPv4 address at which other hosts reach this one",
        |to, text| {
            let what = "an IPv4 address such as 10.0.0.1";
            put(&mut to.public_ip, address(text, what))
        },
    )
    .value("ADDRESS")
    .details("Default: the address of the interface. It is published in the lease."),
    Flag::new(
        Group::Interface,
        "public-ipv6",
        "IPv6 address at which other hosts reach this one",
        |to, text| put(&mut to.public_ipv6, Ok(optional(text).map(Into::into))),
    )
    .value("ADDRESS")
    .newer()
    .without_effect(),
    Flag::new(
        Group::Interface,
        "receive-on",
        "Where to accept packets from peers: any, public, interface",
        |to, text| {
            let words = [
                ("any", ReceiveOn::Any),
                ("public", ReceiveOn::Public),
                ("interface", ReceiveOn::Interface),
            ];
            put(&mut to.receive_on, choice(text, &words))
        },
    )
    .value("WHERE")
    .default("any")
    .ours()
    .details(
        "any: at every address of the host and on every interface, as the kernel's vxlan does. \
         public: at the published address only. interface: at that address and on its interface \
         only; packets that arrive on another one are dropped as in_other_interface. Do not use \
         public or interface on hosts with asymmetric routes or several uplinks.",
    ),
];
