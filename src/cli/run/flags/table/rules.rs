//! Flags about firewall rules.

use std::time::Duration;

use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::FirewallChoice;
use crate::daemon::options::parse::{boolean, choice, count};

pub(crate) const FLAGS: &[Flag] = &[
    Flag::new(
        Group::Rules,
        "ip-masq",
        "Masquerade what containers send to addresses outside of the network",
        |to, text| {
            to.ip_masq = boolean(text)?;
            Ok(())
        },
    ),
    Flag::new(
        Group::Rules,
        "ip-masq-fully-random-disable",
        "Masquerade without random ports",
        |to, text| {
            to.ip_masq_fully_random_disable = boolean(text)?;
            Ok(())
        },
    )
    .newest(),
    Flag::new(
        Group::Rules,
        "firewall",
        "Who holds the rules: auto, iptables, nftables, none, print",
        |to, text| {
            let words = [
                ("auto", FirewallChoice::Auto),
                ("iptables", FirewallChoice::Iptables),
                ("nftables", FirewallChoice::Nftables),
                ("none", FirewallChoice::None),
                ("print", FirewallChoice::Print),
            ];
            to.firewall = choice(text, &words)?;
            Ok(())
        },
    )
    .value("TOOL")
    .default("auto")
    .ours()
    .details(
        "auto takes nftables where the network config says EnableNFTables, else iptables, and the \
         other where that is not installed. print writes the rules to stdout and installs none.",
    ),
    Flag::new(
        Group::Rules,
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
        Group::Rules,
        "iptables-forward-rules",
        "Accept forwarded traffic of the network",
        |to, text| {
            to.iptables_forward_rules = boolean(text)?;
            Ok(())
        },
    )
    .default("true"),
    Flag::new(
        Group::Rules,
        "ip-blackhole-route",
        "Discard packets to the own subnet that no other route takes",
        |to, text| {
            to.ip_blackhole_route = boolean(text)?;
            Ok(())
        },
    )
    .newest(),
];
