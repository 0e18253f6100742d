//! Leftovers of flannel of any version and of our own earlier runs, with each tool.

use std::fs;

use super::bench::{
    Bench, FOREIGN_RULE, NETWORK, Tool, of_iptables, of_nftables, parts_of_iptables,
};

use crate::support::need;
use crate::support::nodes::{eventually, possible};

/// The subnet that this host had when flannel ran.
const OLD_SUBNET: &str = "10.5.250.0/24";

/// Rules of v0.11 for a network, as arguments of `iptables`.
fn of_v0_11(n: &str, subnet: &str, random: &str) -> Vec<String> {
    vec![
        format!("-t nat -A POSTROUTING -s {n} -d {n} -j RETURN"),
        format!("-t nat -A POSTROUTING -s {n} ! -d 224.0.0.0/4 -j MASQUERADE{random}"),
        format!("-t nat -A POSTROUTING ! -s {n} -d {subnet} -j RETURN"),
        format!("-t nat -A POSTROUTING ! -s {n} -d {n} -j MASQUERADE{random}"),
        format!("-A FORWARD -s {n} -j ACCEPT"),
        format!("-A FORWARD -d {n} -j ACCEPT"),
    ]
}

/// Those of the versions between v0.11 and the chains: the same, with a comment.
fn with_comments(rules: Vec<String>) -> Vec<String> {
    let commented = rules.into_iter().map(|rule| {
        let what = if rule.starts_with("-t nat") {
            "masq"
        } else {
            "forward"
        };
        rule.replace(
            " -j ",
            &format!(" -m comment --comment \"flanneld {what}\" -j "),
        )
    });
    commented.collect()
}

/// All of them at once, with a foreign rule in the middle.
pub(crate) fn seed(bench: &Bench) {
    let foreign = format!("-t nat {}", FOREIGN_RULE.trim());
    let rules = of_v0_11(NETWORK, OLD_SUBNET, " --random-fully")
        .into_iter()
        .chain([foreign])
        .chain(with_comments(of_v0_11(NETWORK, OLD_SUBNET, "")));
    for rule in rules {
        bench.shell(&format!("iptables {rule}"));
    }
    // Those of the newest version, with two jumps and another subnet.
    let (nat, filter) = parts_of_iptables(NETWORK, OLD_SUBNET, "");
    for (table, [_, rules], chain) in [
        ("nat", nat, "FLANNEL-POSTRTG"),
        ("filter", filter, "FLANNEL-FWD"),
    ] {
        let jump = rules.lines().next().unwrap();
        let text = format!("*{table}\n:{chain} - [0:0]\n{rules}{jump}\nCOMMIT\n");
        bench.shell(&format!("iptables-restore --noflush <<'END'\n{text}END"));
    }
    bench.shell(
        "ip6tables -t nat -N FLANNEL-POSTRTG; ip6tables -N FLANNEL-FWD; \
         ip6tables -A FLANNEL-FWD -s fc00::/48 -m comment --comment 'flanneld forward' -j ACCEPT; \
         ip6tables -A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD",
    );
    let old = of_nftables(NETWORK, OLD_SUBNET.parse().unwrap(), true);
    let of_ipv6 = old
        .replace("table ip flannel-ipv4", "table ip6 flannel-ipv6")
        .replace("ip saddr", "ip6 saddr")
        .replace("ip daddr", "ip6 daddr")
        .replace(NETWORK, "fc00::/48")
        .replace(OLD_SUBNET, "fc00::/64")
        .replace("224.0.0.0/4", "ff00::/8");
    bench.shell(&format!("nft -f - <<'END'\n{old}{of_ipv6}END"));
    assert_eq!(
        bench.tables(),
        format!("{old}{of_ipv6}"),
        "set up by the test"
    );
}

/// The expected rules in iptables and in nftables when the daemon uses this tool.
fn wanted(tool: Tool, network: &str, subnet: ipnet::Ipv4Net, masquerade: bool) -> [String; 2] {
    match tool {
        Tool::Nft => [
            FOREIGN_RULE.to_owned(),
            of_nftables(network, subnet, masquerade),
        ],
        Tool::IptablesNft | Tool::IptablesLegacy => {
            let rules = of_iptables(network, subnet, masquerade);
            // Chains come first, and the foreign rule was there before ours.
            let jump = rules.find("-A ").unwrap();
            let (chains, rules) = rules.split_at(jump);
            let foreign = format!("{chains}{FOREIGN_RULE}{rules}");
            let alone = format!("{FOREIGN_RULE}{chains}{rules}");
            [if masquerade { foreign } else { alone }, String::new()]
        }
    }
}

#[test]
fn rules_are_flannels_stay_and_nothing_else_is_left() {
    need!(possible(&["iptables", "nft"]));
    for tool in Tool::ALL {
        let bench = Bench::new(tool);
        seed(&bench);
        let mut node = bench.node(&["--ip-masq", "--iptables-resync=1", &tool.flag()]);
        let wanted = wanted(tool, NETWORK, node.env.unwrap().subnet, true);
        let now = || [bench.saved(), bench.tables()];
        assert_eq!(now(), wanted, "{tool:?}, at start");
        let of_ipv6 = bench.shell("ip6tables-save -t nat; ip6tables-save -t filter");
        assert!(!of_ipv6.contains("FLANNEL"), "{tool:?}: {of_ipv6}");

        bench.shell(match tool {
            Tool::Nft => "nft delete table ip flannel-ipv4",
            _ => "iptables -F FLANNEL-FWD; iptables -t nat -D FLANNEL-POSTRTG 2",
        });
        eventually("the rules are restored", || now() == wanted);

        node.stop_daemon();
        assert_eq!(now(), wanted, "{tool:?}: they stay, as flannel's");
        node.start_daemon();
        assert_eq!(now(), wanted, "{tool:?}, at a second start");
    }
}

#[test]
fn a_change_of_tool_moves_the_rules() {
    need!(possible(&["iptables", "nft"]));
    let bench = Bench::new(Tool::IptablesNft);
    bench.shell(&format!("iptables -t nat {}", FOREIGN_RULE.trim()));
    let mut node = bench.node(&["--ip-masq", "--firewall=iptables"]);
    let subnet = node.env.unwrap().subnet;
    for tool in [Tool::Nft, Tool::IptablesNft] {
        node.stop_daemon();
        *node.flags.last_mut().unwrap() = tool.flag();
        node.start_daemon();
        let wanted = wanted(tool, NETWORK, subnet, true);
        assert_eq!([bench.saved(), bench.tables()], wanted, "{tool:?}");
    }
}

#[test]
fn a_change_of_network_takes_the_old_ones_rules_away() {
    need!(possible(&["iptables", "nft"]));
    for tool in Tool::ALL {
        for overwritten in [false, true] {
            let bench = Bench::new(tool);
            bench.shell(&format!("iptables -t nat {}", FOREIGN_RULE.trim()));
            let mut node = bench.node(&["--ip-masq", &tool.flag()]);
            node.stop_daemon();
            // As if v0.11 had run with the old network in between.
            let old = node.env.unwrap().subnet.to_string();
            for rule in of_v0_11(NETWORK, &old, "") {
                bench.shell(&format!("iptables {rule}"));
            }
            if overwritten {
                // mk-docker-opts.sh -d leaves no network in the file; our own state has it.
                let options = "DOCKER_OPT_BIP=\"--bip=10.5.1.1/24\"\n";
                fs::write(node.folder.join("subnet.env"), options).unwrap();
            } else {
                fs::remove_file(node.folder.join("state/state.json")).unwrap();
            }
            bench.change_network();
            node.flags.push("--allow-renumber".into());
            node.start_daemon();
            let wanted = wanted(tool, "10.6.0.0/16", node.env.unwrap().subnet, true);
            let now = || [bench.saved(), bench.tables()];
            assert_eq!(now(), wanted, "{tool:?}, {overwritten}");
        }
    }
}

#[test]
fn rules_no_longer_wanted_are_removed() {
    need!(possible(&["iptables", "nft"]));
    for tool in Tool::ALL {
        let bench = Bench::new(tool);
        bench.shell(&format!("iptables -t nat {}", FOREIGN_RULE.trim()));
        let mut node = bench.node(&[&tool.flag(), "--ip-masq"]);
        node.stop_daemon();
        node.flags.pop();
        node.start_daemon();
        let subnet = node.env.unwrap().subnet;
        let without = wanted(tool, NETWORK, subnet, false);
        assert_eq!([bench.saved(), bench.tables()], without, "{tool:?}");
    }
}
