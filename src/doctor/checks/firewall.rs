//! Whether firewall rules let tunnels in and the containers' packets through.
//!
//! The rules are walked as the kernel walks them, for a packet as a peer would send it. A rule
//! that cannot be judged from here (marks, sets, rates) makes what follows uncertain; only a
//! certain drop is a finding.

pub mod iptables;
pub mod nft;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::daemon::listed;
use crate::doctor::Finding;
use crate::doctor::facts::{Facts, Firewall};

/// Most peers whose packets are walked through the rules.
const TRIED: usize = 64;
/// How deep chains may call each other; the kernel allows 16.
const DEPTH: usize = 16;

/// Where a packet meets the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// For this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
}

impl Hook {
    /// Name in iptables.
    #[must_use]
    pub const fn chain(self) -> &'static str {
        match self {
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
            Self::Output => "OUTPUT",
        }
    }

    /// Name in nftables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
        }
    }
}

/// The first packet of a new conversation. What is `None` can be anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Where it meets the rules.
    pub hook: Hook,
    /// Source address.
    pub source: Option<Ipv4Addr>,
    /// Destination address.
    pub destination: Option<Ipv4Addr>,
    /// Interface it comes in by.
    pub input: Option<String>,
    /// Interface it leaves by.
    pub output: Option<String>,
    /// It is UDP, to this port.
    pub udp_port: Option<u16>,
}

/// Whether a condition holds for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// Depends on what is not known.
    Maybe,
}

impl Match {
    /// Both hold.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Maybe,
        }
    }

    /// The opposite, where `negated`.
    #[must_use]
    pub const fn negated_if(self, negated: bool) -> Self {
        match (self, negated) {
            (Self::Yes, true) => Self::No,
            (Self::No, true) => Self::Yes,
            (same, _) => same,
        }
    }

    /// Whether a known value meets a condition.
    pub fn of<T>(known: Option<T>, condition: impl FnOnce(T) -> bool) -> Self {
        known.map_or(Self::Maybe, |value| match condition(value) {
            true => Self::Yes,
            false => Self::No,
        })
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It passes, or a rule that cannot be judged decides.
    Passes,
    /// It is dropped for certain.
    Dropped(Culprit),
}

/// A certain drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Culprit {
    /// The program that changes such rules.
    pub program: &'static str,
    /// Which chain and rule, for a person.
    pub by: String,
    /// The command that lets tunnels in there, with `PORT` for the port.
    pub accept: String,
}

/// How a chain ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Accepted,
    Dropped(String),
}

/// What the rules do with a packet; `None` where they could not be read.
fn judge(rules: &Firewall, packet: &Packet) -> Option<Verdict> {
    let by_iptables = |program, read: &Option<Result<String, String>>| {
        let text = read.as_ref()?.as_ref().ok()?;
        Some(iptables::judge(program, text, packet))
    };
    let nft = rules.nft.as_ref().and_then(|read| read.as_ref().ok());
    let verdicts = [
        by_iptables("iptables", &rules.iptables),
        by_iptables("iptables-legacy", &rules.legacy),
        nft.and_then(|text| nft::judge(text, packet)),
    ];
    let known: Vec<_> = verdicts.into_iter().flatten().collect();
    let read = !known.is_empty();
    let dropped = known
        .into_iter()
        .find(|verdict| matches!(verdict, Verdict::Dropped(_)));
    dropped.or_else(|| read.then_some(Verdict::Passes))
}

fn unread(check: &'static str, rules: &Firewall) -> Finding {
    let why = [&rules.iptables, &rules.nft]
        .into_iter()
        .flatten()
        .filter_map(|read| read.as_ref().err())
        .next();
    let why = why.map_or("not looked at", String::as_str);
    Finding::skipped(check, format!("the rules could not be read: {why}"))
}

/// Peers whose tunnels the rules of a hook drop for certain, and the first rule that does;
/// `None` where the rules could not be read.
fn blocked(facts: &Facts, hook: Hook) -> Option<(Vec<String>, Option<Culprit>)> {
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
        .take(TRIED)
        .map(|peer| Some(peer.public_ip))
        .collect();
    if peers.is_empty() {
        peers.push(None);
    }
    let mut blocked = Vec::new();
    let mut first = None;
    for peer in peers {
        if let Verdict::Dropped(by) = judge(&facts.firewall, &packet(peer))? {
            blocked.push(peer.map_or("any peer".into(), |address| address.to_string()));
            first.get_or_insert(by);
        }
    }
    Some((blocked, first))
}

/// Whether tunnels from each peer come in.
#[must_use]
pub fn input(facts: &Facts) -> Finding {
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
            "tunnels of those peers do not come in: packets go one way, or none",
            drop.accept.replace("PORT", &port.to_string()),
        ),
    }
}

/// Whether tunnels to each peer leave.
#[must_use]
pub fn output(facts: &Facts) -> Finding {
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
            "nothing that this host sends reaches those peers; the drops are counted as \
             out_forbidden",
            drop.accept.replace("PORT", &port.to_string()),
        ),
    }
}

/// Whether packets between our containers and the peers' pass.
#[must_use]
pub fn forward(facts: &Facts) -> Finding {
    const CHECK: &str = "firewall-forward";
    let Some(served) = facts.served() else {
        return Finding::skipped(CHECK, "which subnet is ours is not known");
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
    let ways = [
        ("to the overlay", packet(ours, theirs, &bridge, &device)),
        ("from the overlay", packet(theirs, ours, &device, &bridge)),
    ];
    let mut found: Vec<(&str, Culprit)> = Vec::new();
    for (way, packet) in &ways {
        match judge(&facts.firewall, packet) {
            None => return unread(CHECK, &facts.firewall),
            Some(Verdict::Passes) => {}
            Some(Verdict::Dropped(drop)) => found.push((way, drop)),
        }
    }
    let Some((_, drop)) = found.first() else {
        return Finding::ok(CHECK, "packets of containers pass");
    };
    let by = &drop.by;
    if !facts.alive() {
        return Finding::skipped(
            CHECK,
            format!("dropped by {by}; the daemon puts its own accepting rules in at its start"),
        );
    }
    let ways: Vec<_> = found.iter().map(|(way, _)| *way).collect();
    let (net, device) = (served.network, &served.device);
    let remedy = if by.contains("table inet firewalld") {
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
        "nft -a list ruleset: insert an accepting rule for the overlay network into that chain; an \
         accept in another table does not count there"
            .to_owned()
    };
    Finding::error(
        CHECK,
        format!("packets {} are dropped by {by}", ways.join(" and ")),
        "containers do not reach those of other hosts; this host itself does",
        remedy,
    )
}

/// Some host of a subnet, not its first one, which is the bridge's.
fn host_of(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.network().to_bits().wrapping_add(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::Daemon;
    use crate::doctor::{Outcome, samples};

    fn with_iptables(rules: &str) -> Facts {
        let mut facts = samples::healthy();
        facts.firewall.iptables = Some(Ok(format!("*filter\n{rules}COMMIT\n")));
        facts
    }

    #[test]
    fn a_closed_port_is_an_error_with_the_command_that_opens_it() {
        let facts = with_iptables(":INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n");
        let finding = input(&facts);
        assert_eq!(finding.status, Outcome::Error);
        assert!(finding.seen.contains("192.0.2.2"), "{finding:?}");
        assert_eq!(
            finding.remedy,
            "iptables -I INPUT -p udp --dport 8472 -j ACCEPT"
        );
        assert_eq!(forward(&facts).status, Outcome::Ok);
    }

    #[test]
    fn a_closed_way_out_is_an_error_too_also_in_tables_of_the_older_iptables() {
        let rules =
            ":OUTPUT ACCEPT [0:0]\n-A OUTPUT -o eth0 -p udp -m udp --dport 8472 -j REJECT\n";
        let facts = with_iptables(rules);
        let finding = output(&facts);
        assert_eq!(finding.status, Outcome::Error);
        assert!(finding.seen.contains("8472 of 192.0.2.2"), "{finding:?}");
        assert_eq!(input(&facts).status, Outcome::Ok);
        let mut facts = samples::healthy();
        facts.firewall.legacy = Some(Ok(format!("*filter\n{rules}COMMIT\n")));
        assert_eq!(
            output(&facts).remedy,
            "iptables-legacy -I OUTPUT -p udp --dport 8472 -j ACCEPT"
        );
    }

    #[test]
    fn dockers_policy_is_an_error_unless_our_rules_accept() {
        let policy = ":INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n";
        let mut facts = with_iptables(policy);
        let finding = forward(&facts);
        assert_eq!(finding.status, Outcome::Error);
        assert!(finding.seen.contains("to the overlay and from the overlay"));
        facts.daemon = Daemon::Absent(String::new());
        assert_eq!(forward(&facts).status, Outcome::Skipped);
        let rules = format!(
            "{policy}:FLANNEL-FWD - [0:0]\n\
             -A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
             -A FLANNEL-FWD -s 10.5.0.0/16 -j ACCEPT\n-A FLANNEL-FWD -d 10.5.0.0/16 -j ACCEPT\n"
        );
        assert_eq!(forward(&with_iptables(&rules)).status, Outcome::Ok);
    }

    #[test]
    fn rules_that_cannot_be_read_are_skipped() {
        let mut facts = samples::healthy();
        facts.firewall.iptables = Some(Err("no iptables".into()));
        facts.firewall.nft = Some(Err("no nft".into()));
        assert_eq!(input(&facts).status, Outcome::Skipped);
        assert_eq!(forward(&facts).status, Outcome::Skipped);
    }

    #[test]
    fn a_table_of_nftables_alone_counts() {
        let mut facts = samples::healthy();
        facts.firewall.iptables = Some(Err("no iptables".into()));
        let rules = r#"{"nftables":[{"chain":{"family":"inet","table":"filter","name":"input","type":"filter","hook":"input","policy":"drop"}}]}"#;
        facts.firewall.nft = Some(Ok(rules.into()));
        let finding = input(&facts);
        assert_eq!(finding.status, Outcome::Error);
        assert_eq!(
            finding.remedy,
            "nft insert rule inet filter input udp dport 8472 accept"
        );
    }
}
