//! Whether firewall rules let tunnels in and the containers' packets through.
//!
//! The rules are evaluated as the kernel does, for a packet as a peer would send it. A rule that
//! cannot be evaluated here (marks, sets, rates) makes what follows uncertain; only a certain drop
//! is a finding.

mod iptables;
mod nft;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::daemon::listed;
use crate::doctor::Finding;
use crate::doctor::facts::{Facts, FirewallFacts};

/// Most peers whose packets are evaluated.
const MAX_PEERS: usize = 64;
/// How deeply chains may call each other; the kernel allows 16.
const MAX_DEPTH: usize = 16;

/// Where a packet meets the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    Input,
    Forward,
    Output,
}

impl Hook {
    /// Name in iptables.
    const fn chain(self) -> &'static str {
        match self {
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
            Self::Output => "OUTPUT",
        }
    }

    /// Name in nftables.
    const fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
        }
    }
}

/// The first packet of a new connection. `None` means any value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Packet {
    hook: Hook,
    source: Option<Ipv4Addr>,
    destination: Option<Ipv4Addr>,
    /// Interface on which it arrives.
    input: Option<String>,
    /// Interface through which it leaves.
    output: Option<String>,
    udp_port: Option<u16>,
}

/// Whether a condition holds for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Match {
    Yes,
    No,
    /// It depends on something unknown.
    Maybe,
}

impl Match {
    const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Maybe,
        }
    }

    const fn negated_if(self, negated: bool) -> Self {
        match (self, negated) {
            (Self::Yes, true) => Self::No,
            (Self::No, true) => Self::Yes,
            (same, _) => same,
        }
    }

    fn of<T>(known: Option<T>, condition: impl FnOnce(T) -> bool) -> Self {
        known.map_or(Self::Maybe, |value| match condition(value) {
            true => Self::Yes,
            false => Self::No,
        })
    }
}

/// What a whole ruleset does with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum RulesetVerdict {
    /// It passes, or a rule that cannot be evaluated decides.
    Pass,
    /// It is certainly dropped.
    Drop(DroppingRule),
}

/// The rule or policy that drops a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DroppingRule {
    /// The program that changes such rules.
    program: &'static str,
    /// Chain and rule, for a person.
    by: String,
    /// The command that accepts tunnels there, with `PORT` for the port.
    accept: String,
}

/// How a chain decides.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ChainVerdict {
    Accept,
    /// With the rule.
    Drop(String),
}

/// What the rules do with a packet; `None` if they could not be read.
fn evaluate(rules: &FirewallFacts, packet: &Packet) -> Option<RulesetVerdict> {
    let by_iptables = |program, read: &Option<Result<String, String>>| {
        let text = read.as_ref()?.as_ref().ok()?;
        Some(iptables::evaluate(program, text, packet))
    };
    let nft = rules.nft.as_ref().and_then(|read| read.as_ref().ok());
    let verdicts = [
        by_iptables("iptables", &rules.iptables),
        by_iptables("iptables-legacy", &rules.legacy),
        nft.and_then(|text| nft::evaluate(text, packet)),
    ];
    let known: Vec<_> = verdicts.into_iter().flatten().collect();
    let read = !known.is_empty();
    let dropped = known
        .into_iter()
        .find(|verdict| matches!(verdict, RulesetVerdict::Drop(_)));
    dropped.or_else(|| read.then_some(RulesetVerdict::Pass))
}

fn unread(check: &'static str, rules: &FirewallFacts) -> Finding {
    let why = [&rules.iptables, &rules.nft]
        .into_iter()
        .flatten()
        .filter_map(|read| read.as_ref().err())
        .next();
    let why = why.map_or("not tried", String::as_str);
    Finding::skipped(check, format!("the rules could not be read: {why}"))
}

/// Peers whose tunnel packets a hook certainly drops, and the first rule that does; `None` if the
/// rules could not be read.
fn blocked(facts: &Facts, hook: Hook) -> Option<(Vec<String>, Option<DroppingRule>)> {
    let external = facts.external();
    let own = external.map(|external| external.address);
    let interface = external.map(|external| external.name.clone());
    let packet = |peer| {
        let (source, destination, input, output) = match hook {
            Hook::Output => (own, peer, None, interface.clone()),
            _ => (peer, own, interface.clone(), None),
        };
        Packet {
            hook,
            source,
            destination,
            input,
            output,
            udp_port: Some(facts.port()),
        }
    };
    let known = facts.peers();
    let mut peers: Vec<_> = known
        .iter()
        .take(MAX_PEERS)
        .map(|peer| Some(peer.public_ip))
        .collect();
    if peers.is_empty() {
        peers.push(None);
    }
    let mut blocked = Vec::new();
    let mut first = None;
    for peer in peers {
        if let RulesetVerdict::Drop(by) = evaluate(&facts.firewall, &packet(peer))? {
            blocked.push(peer.map_or("any peer".into(), |address| address.to_string()));
            first.get_or_insert(by);
        }
    }
    Some((blocked, first))
}

/// Whether tunnel packets from each peer are accepted.
pub(crate) fn input(facts: &Facts) -> Finding {
    const CHECK: &str = "firewall-input";
    let port = facts.port();
    match blocked(facts, Hook::Input) {
        None => unread(CHECK, &facts.firewall),
        Some((_, None)) => Finding::ok(CHECK, format!("UDP port {port} is not blocked")),
        Some((peers, Some(drop))) => Finding::error(
            CHECK,
            format!(
                "UDP port {port} from {} is dropped by {}",
                listed(&peers),
                drop.by
            ),
            "tunnel packets of these peers are dropped, so that traffic flows in one direction at most",
            drop.accept.replace("PORT", &port.to_string()),
        ),
    }
}

/// Whether tunnel packets to each peer may leave.
pub(crate) fn output(facts: &Facts) -> Finding {
    const CHECK: &str = "firewall-output";
    let port = facts.port();
    match blocked(facts, Hook::Output) {
        None => unread(CHECK, &facts.firewall),
        Some((_, None)) => Finding::ok(
            CHECK,
            format!("UDP to port {port} of the peers is not blocked"),
        ),
        Some((peers, Some(drop))) => Finding::error(
            CHECK,
            format!(
                "UDP to port {port} of {} is dropped by {}",
                listed(&peers),
                drop.by
            ),
            "nothing that this host sends reaches these peers; the drops are counted as \
             out_forbidden",
            drop.accept.replace("PORT", &port.to_string()),
        ),
    }
}

/// Whether packets between our containers and those of peers may pass.
pub(crate) fn forward(facts: &Facts) -> Finding {
    const CHECK: &str = "firewall-forward";
    let Some(served) = facts.served() else {
        return Finding::skipped(CHECK, "our subnet is unknown");
    };
    let bridge = facts.bridges_in(served.subnet).next();
    let bridge = bridge.map(|link| link.name.clone());
    let device = Some(served.device.clone());
    let peer = facts.peers().first().map(|peer| peer.subnet);
    let ours = host_of(served.subnet);
    let theirs = peer.map_or_else(|| host_of(served.network), host_of);
    let packet = |from, to, input: &Option<String>, output: &Option<String>| Packet {
        hook: Hook::Forward,
        source: Some(from),
        destination: Some(to),
        input: input.clone(),
        output: output.clone(),
        udp_port: None,
    };
    let directions = [
        ("to the overlay", packet(ours, theirs, &bridge, &device)),
        ("from the overlay", packet(theirs, ours, &device, &bridge)),
    ];
    let mut found: Vec<(&str, DroppingRule)> = Vec::new();
    for (direction, packet) in &directions {
        match evaluate(&facts.firewall, packet) {
            None => return unread(CHECK, &facts.firewall),
            Some(RulesetVerdict::Pass) => {}
            Some(RulesetVerdict::Drop(drop)) => found.push((direction, drop)),
        }
    }
    let Some((_, drop)) = found.first() else {
        return Finding::ok(CHECK, "the containers' packets pass");
    };
    let by = &drop.by;
    if !facts.daemon_runs() {
        return Finding::skipped(
            CHECK,
            format!("dropped by {by}; the daemon adds its own accepting rules when it starts"),
        );
    }
    let directions: Vec<_> = found.iter().map(|(direction, _)| *direction).collect();
    let (net, device) = (served.network, &served.device);
    let fix = if by.contains("table inet firewalld") {
        format!(
            "firewall-cmd --permanent --zone=trusted --add-interface={device}; firewall-cmd --reload"
        )
    } else if drop.program != "nft" {
        let program = drop.program;
        format!(
            "{program} -I FORWARD -s {net} -j ACCEPT; {program} -I FORWARD -d {net} -j ACCEPT; or run \
             the daemon without --iptables-forward-rules=false and --firewall=none"
        )
    } else {
        "nft -a list ruleset; insert a rule into that chain that accepts the overlay network, because \
         an accept in another table has no effect there"
            .to_owned()
    };
    Finding::error(
        CHECK,
        format!("packets {} are dropped by {by}", directions.join(" and ")),
        "containers cannot reach those of other hosts, though this host itself can",
        fix,
    )
}

/// A host in a subnet; not the first one, which is the bridge.
fn host_of(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.network().to_bits().wrapping_add(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::DaemonFacts;
    use crate::doctor::{FindingStatus, samples};

    /// A tunnel packet from a peer.
    pub(super) fn tunnel() -> Packet {
        Packet {
            hook: Hook::Input,
            source: Some("192.0.2.2".parse().unwrap()),
            destination: Some("192.0.2.1".parse().unwrap()),
            input: Some("eth0".into()),
            output: None,
            udp_port: Some(8472),
        }
    }

    fn with_iptables(rules: &str) -> Facts {
        let mut facts = samples::healthy();
        facts.firewall.iptables = Some(Ok(format!("*filter\n{rules}COMMIT\n")));
        facts
    }

    #[test]
    fn a_closed_port_is_an_error_with_the_command_that_opens_it() {
        let facts = with_iptables(":INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n");
        let finding = input(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.seen.contains("192.0.2.2"), "{finding:?}");
        assert_eq!(
            finding.fix,
            "iptables -I INPUT -p udp --dport 8472 -j ACCEPT"
        );
        assert_eq!(forward(&facts).status, FindingStatus::Ok);
    }

    #[test]
    fn a_blocked_output_is_an_error_also_in_legacy_tables() {
        let rules =
            ":OUTPUT ACCEPT [0:0]\n-A OUTPUT -o eth0 -p udp -m udp --dport 8472 -j REJECT\n";
        let facts = with_iptables(rules);
        let finding = output(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.seen.contains("8472 of 192.0.2.2"), "{finding:?}");
        assert_eq!(input(&facts).status, FindingStatus::Ok);
        let mut facts = samples::healthy();
        facts.firewall.legacy = Some(Ok(format!("*filter\n{rules}COMMIT\n")));
        assert_eq!(
            output(&facts).fix,
            "iptables-legacy -I OUTPUT -p udp --dport 8472 -j ACCEPT"
        );
    }

    #[test]
    fn dockers_policy_is_an_error_unless_our_rules_accept() {
        let policy = ":INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n";
        let mut facts = with_iptables(policy);
        let finding = forward(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.seen.contains("to the overlay and from the overlay"));
        facts.daemon = DaemonFacts::Absent(String::new());
        assert_eq!(forward(&facts).status, FindingStatus::Skipped);
        let rules = format!(
            "{policy}:FLANNEL-FWD - [0:0]\n\
             -A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
             -A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT\n-A FLANNEL-FWD -d 10.5.0.0/16 -j ACCEPT\n"
        );
        assert_eq!(forward(&with_iptables(&rules)).status, FindingStatus::Ok);
    }

    #[test]
    fn rules_that_cannot_be_read_are_skipped() {
        let mut facts = samples::healthy();
        facts.firewall.iptables = Some(Err("no iptables".into()));
        facts.firewall.nft = Some(Err("no nft".into()));
        assert_eq!(input(&facts).status, FindingStatus::Skipped);
        assert_eq!(forward(&facts).status, FindingStatus::Skipped);
    }

    #[test]
    fn a_ruleset_of_nftables_alone_is_enough() {
        let mut facts = samples::healthy();
        facts.firewall.iptables = Some(Err("no iptables".into()));
        let rules = r#"{"nftables":[{"chain":{"family":"inet","table":"filter","name":"input","type":"filter","hook":"input","policy":"drop"}}]}"#;
        facts.firewall.nft = Some(Ok(rules.into()));
        let finding = input(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert_eq!(
            finding.fix,
            "nft insert rule inet filter input udp dport 8472 accept"
        );
    }
}
