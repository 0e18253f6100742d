//! Flags about firewall rules and routes.

use std::time::Duration;

use super::put;
use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::FirewallChoice;
use crate::daemon::options::parse::{boolean, choice, count};

pub(crate) const FLAGS: &[Flag] = &[
    Flag::new(
        Group::Firewall,
        "ip-masq",
        "Masquerade what containers send to addresses outside of the network",
        |to, text| put(&mut to.ip_masq, boolean(text)),
    ),
    Flag::new(
        Group::Firewall,
        "ip-masq-fully-random-disable",
        "Masquerade without fully random source ports",
        |to, text| put(&mut to.ip_masq_fully_random_disable, boolean(text)),
    )
    .newer(),
    Flag::new(
        Group::Firewall,
        "firewall",
        "What installs the rules: auto, iptables, nftables, none, print",
        |to, text| {
            let words = [
                ("auto", FirewallChoice::Auto),
                ("iptables", FirewallChoice::Iptables),
                ("nftables", FirewallChoice::Nftables),
                ("none", FirewallChoice::None),
                ("print", FirewallChoice::Print),
            ];
            put(&mut to.firewall, choice(text, &words))
        },
    )
    .value("TOOL")
    .default("auto")
    .ours()
    .details(
        "auto takes nftables if the network config says EnableNFTables, otherwise iptables; if \
         that one does not work here, the other. print writes the rules to stdout and installs \
         none.",
    ),
    Flag::new(
        Group::Firewall,
        "iptables-resync",
        "Seconds between two checks of the rules; 0 is never",
        |to, text| {
            to.iptables_resync = Duration::from_secs(count(text, 0, u32::MAX)?.into());
            Ok(())
        },
    )
    .value("SECONDS")
    .default("5"),
    Flag::new(
        Group::Firewall,
        "iptables-forward-rules",
        "Accept forwarded traffic of the network",
        |to, text| put(&mut to.iptables_forward_rules, boolean(text)),
    )
    .default("true")
    .details("Docker sets the policy of FORWARD to DROP; without these rules containers of two hosts do not reach each other there."),
    Flag::new(
        Group::Firewall,
        "ip-blackhole-route",
        "Discard packets to addresses of this node's subnet that no container has",
        |to, text| put(&mut to.ip_blackhole_route, boolean(text)),
    )
    .newer()
    .details("Without it they leave by the default route."),
];
