//! Evaluates the filter table, as printed by `iptables-save`, for one packet.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;

use super::{ChainVerdict, DroppingRule, Hook, MAX_DEPTH, Match, Packet, RulesetVerdict};

/// Targets after which evaluation continues with the next rule.
const NON_TERMINATING: [&str; 8] = [
    "LOG", "NFLOG", "MARK", "CONNMARK", "TRACE", "AUDIT", "SET", "TCPMSS",
];

#[derive(Debug, Default)]
struct Chain<'a> {
    policy: &'a str,
    rules: Vec<&'a str>,
}

type Chains<'a> = BTreeMap<&'a str, Chain<'a>>;

/// Evaluates the output of `iptables-save` or `iptables-legacy-save`. `program` changes the rules
/// that were printed.
pub(super) fn evaluate(program: &'static str, saved: &str, packet: &Packet) -> RulesetVerdict {
    let chains = filter_table(saved);
    let name = packet.hook.chain();
    let Some(base) = chains.get(name) else {
        return RulesetVerdict::Pass;
    };
    let mut certain = true;
    let by = match walk(&chains, name, packet, &mut certain, 0) {
        Some(ChainVerdict::Accept) => return RulesetVerdict::Pass,
        Some(ChainVerdict::Drop(rule)) => format!("the {program} rule -A {rule}"),
        None if base.policy == "DROP" => format!("the {program} policy DROP of {name}"),
        None => return RulesetVerdict::Pass,
    };
    if !certain {
        return RulesetVerdict::Pass;
    }
    let accept = match chains.keys().any(|chain| chain.starts_with("ufw-")) {
        true if packet.hook == Hook::Output => "ufw allow out PORT/udp".to_owned(),
        true => "ufw allow PORT/udp".to_owned(),
        false => format!("{program} -I {name} -p udp --dport PORT -j ACCEPT"),
    };
    RulesetVerdict::Drop(DroppingRule {
        program,
        by,
        accept,
    })
}

fn filter_table(saved: &str) -> Chains<'_> {
    let mut chains = Chains::new();
    let lines = saved
        .lines()
        .skip_while(|line| line.trim() != "*filter")
        .take_while(|line| line.trim() != "COMMIT");
    for line in lines {
        if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split_ascii_whitespace();
            let name = words.next().unwrap_or_default();
            chains.entry(name).or_default().policy = words.next().unwrap_or_default();
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let name = rule.split_ascii_whitespace().next().unwrap_or_default();
            chains.entry(name).or_default().rules.push(rule);
        }
    }
    chains
}

/// Evaluates a chain; `None` at its end. Clears `certain` if something that cannot be evaluated
/// could have decided otherwise.
fn walk(
    chains: &Chains<'_>,
    name: &str,
    packet: &Packet,
    certain: &mut bool,
    depth: usize,
) -> Option<ChainVerdict> {
    if depth > MAX_DEPTH {
        *certain = false;
        return None;
    }
    for rule in &chains.get(name)?.rules {
        let words = words(rule);
        let (matches, target) = match_rule(&words, packet);
        let (Some((target, returns)), true) = (target, matches != Match::No) else {
            continue;
        };
        let sure = matches == Match::Yes;
        match target {
            "ACCEPT" if sure => return Some(ChainVerdict::Accept),
            "DROP" | "REJECT" if sure => return Some(ChainVerdict::Drop((*rule).to_owned())),
            "DROP" | "REJECT" => {}
            "RETURN" if sure => return None,
            _ if NON_TERMINATING.contains(&target) => {}
            _ if chains.contains_key(target) => {
                let mut inner = true;
                let end = walk(chains, target, packet, &mut inner, depth + 1);
                *certain &= inner;
                match end {
                    Some(_) if sure => return end,
                    Some(ChainVerdict::Accept) => *certain = false,
                    None if sure && !returns => return None,
                    None if !returns => *certain = false,
                    _ => {}
                }
            }
            // ACCEPT or RETURN that may match, and unknown targets.
            _ => *certain = false,
        }
    }
    None
}

/// Splits a rule as a shell would.
fn words(rule: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut any) = (false, false);
    let mut characters = rule.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                quoted = !quoted;
                any = true;
            }
            '\\' if quoted => word.extend(characters.next()),
            blank if blank.is_whitespace() && !quoted => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            other => word.push(other),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

/// Whether a rule matches; its target, and whether evaluation returns from it (-j, not -g).
fn match_rule<'a>(words: &'a [String], packet: &Packet) -> (Match, Option<(&'a str, bool)>) {
    let mut matches = Match::Yes;
    let mut negated = false;
    let mut rest = words.iter().map(String::as_str).skip(1);
    while let Some(word) = rest.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        let mut value = || rest.next().unwrap_or_default();
        let condition = match word {
            "-j" => return (matches, Some((value(), true))),
            "-g" => return (matches, Some((value(), false))),
            "-m" | "--comment" => {
                value();
                continue;
            }
            "-s" | "-d" => {
                let prefix: Option<Ipv4Net> = prefix(value());
                let address = if word == "-s" {
                    packet.source
                } else {
                    packet.destination
                };
                match prefix {
                    Some(prefix) => Match::of(address, |address| prefix.contains(&address)),
                    None => Match::Maybe,
                }
            }
            "-i" => interface(value(), packet.input.as_deref()),
            "-o" => interface(value(), packet.output.as_deref()),
            "-p" => protocol(value(), packet),
            "--dport" | "--dports" | "--destination-port" | "--destination-ports" => {
                let ports = value();
                Match::of(packet.udp_port, |port| is_among(port, ports))
            }
            "--ctstate" | "--state" => match value().split(',').any(|state| state == "NEW") {
                true => Match::Yes,
                false => Match::No,
            },
            "--dst-type" => match (packet.hook, value()) {
                (Hook::Input, "LOCAL") => Match::Yes,
                _ => Match::Maybe,
            },
            // An unknown option. Its values do not begin with a dash.
            option if option.starts_with('-') => Match::Maybe,
            _ => continue,
        };
        matches = matches.and(condition.negated_if(negated));
        negated = false;
    }
    (matches, None)
}

fn prefix(text: &str) -> Option<Ipv4Net> {
    let single = || text.parse::<std::net::Ipv4Addr>().ok().map(Ipv4Net::from);
    text.parse().ok().or_else(single)
}

fn interface(wanted: &str, found: Option<&str>) -> Match {
    Match::of(found, |found| match wanted.strip_suffix('+') {
        Some(start) => found.starts_with(start),
        None => found == wanted,
    })
}

fn protocol(wanted: &str, packet: &Packet) -> Match {
    match wanted {
        "all" | "0" | "ip" => Match::Yes,
        _ => Match::of(packet.udp_port, |_| matches!(wanted, "udp" | "17")),
    }
}

fn is_among(port: u16, ports: &str) -> bool {
    ports.split(',').any(|entry| {
        let (first, last) = entry.split_once(':').unwrap_or((entry, entry));
        let bound = |text: &str, open: u16| match text {
            "" => Some(open),
            text => text.parse().ok(),
        };
        match (bound(first, 0), bound(last, u16::MAX)) {
            (Some(first), Some(last)) => (first..=last).contains(&port),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::tunnel;
    use super::*;

    /// Whether a tunnel packet is certainly dropped.
    fn drops(rules: &str) -> bool {
        let saved = format!("*nat\n:INPUT DROP [0:0]\nCOMMIT\n*filter\n{rules}COMMIT\n");
        matches!(
            evaluate("iptables", &saved, &tunnel()),
            RulesetVerdict::Drop(_)
        )
    }

    #[test]
    fn the_policy_decides_if_no_rule_does() {
        assert!(drops(":INPUT DROP [0:0]\n"));
        assert!(!drops(":INPUT ACCEPT [0:0]\n"));
        assert!(!drops(""), "no such table");
    }

    #[test]
    fn rules_that_accept_tunnels() {
        for rule in [
            "-p udp -m udp --dport 8472 -j ACCEPT",
            "-p udp -m multiport --dports 53,8000:9000 -j ACCEPT",
            "-s 192.0.2.0/24 -j ACCEPT",
            "-s 192.0.2.2/32 -i eth0 -p udp -j ACCEPT",
            "! -i lo -j ACCEPT",
            "-i eth+ -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT",
            "-m addrtype --dst-type LOCAL -j ACCEPT",
            "-m comment --comment \"-j DROP \\\" all\" -j ACCEPT",
        ] {
            let rules = format!(":INPUT DROP [0:0]\n-A INPUT {rule}\n");
            assert!(!drops(&rules), "{rule}");
        }
    }

    #[test]
    fn rules_that_do_not_accept_tunnels() {
        for rule in [
            "-p udp -m udp --dport 8473 -j ACCEPT",
            "-p tcp -m tcp --dport 8472 -j ACCEPT",
            "-s 198.51.100.0/24 -j ACCEPT",
            "! -s 192.0.2.0/24 -j ACCEPT",
            "-i lo -j ACCEPT",
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-j LOG --log-prefix \"-j ACCEPT \"",
            "-p udp -m udp --dport 8472",
        ] {
            let rules = format!(":INPUT DROP [0:0]\n-A INPUT {rule}\n");
            assert!(drops(&rules), "{rule}");
        }
    }

    #[test]
    fn a_dropping_rule_is_found_in_another_chain() {
        let rules = ":INPUT ACCEPT [0:0]\n:MINE - [0:0]\n-A INPUT -p udp -j MINE\n\
                     -A MINE -i lo -j RETURN\n-A MINE -p udp -m udp --dport 8472 -j REJECT\n";
        assert!(drops(rules));
        let returned = rules.replace("-i lo -j RETURN", "-i eth0 -j RETURN");
        assert!(!drops(&returned));
        let gone_to = rules.replace("-p udp -j MINE", "-p tcp -g MINE");
        assert!(!drops(&gone_to));
    }

    #[test]
    fn what_cannot_be_evaluated_makes_a_drop_uncertain() {
        for rule in [
            "-m set --match-set friends src -j ACCEPT",
            "-m mark --mark 0x1 -j MINE",
            "-j NFQUEUE --queue-num 0",
            "-m mark --mark 0x1 -g EMPTY",
        ] {
            let rules = format!(
                ":INPUT DROP [0:0]\n:MINE - [0:0]\n:EMPTY - [0:0]\n-A INPUT {rule}\n-A MINE -j ACCEPT\n"
            );
            assert!(!drops(&rules), "{rule}");
        }
        let logs_at_most = ":INPUT DROP [0:0]\n-A INPUT -m limit --limit 3/min -j LOG\n";
        assert!(drops(logs_at_most));
    }

    #[test]
    fn chains_that_call_each_other_end() {
        let rules = ":INPUT DROP [0:0]\n:A - [0:0]\n-A INPUT -j A\n-A A -j A\n";
        assert!(!drops(rules));
    }

    #[test]
    fn the_fix_for_ufw_is_a_ufw_command() {
        let saved = "*filter\n:INPUT DROP [0:0]\n:ufw-user-input - [0:0]\nCOMMIT\n";
        let RulesetVerdict::Drop(drop) = evaluate("iptables", saved, &tunnel()) else {
            panic!()
        };
        assert_eq!(drop.accept, "ufw allow PORT/udp");
    }
}
