//! Evaluates the ruleset, as printed by `nft -j list ruleset` (libnftables-json(5)), for one packet.
//!
//! Every base chain of a hook must let a packet pass: an accept in one table has no effect in
//! another. iptables' own expressions (`xt`) cannot be evaluated here; `iptables-save` prints those.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use serde_json::Value;

use super::{ChainVerdict, DroppingRule, MAX_DEPTH, Match, Packet, RulesetVerdict};

/// Family, table and chain.
type Name<'a> = (&'a str, &'a str, &'a str);

#[derive(Debug, Default)]
struct Chain<'a> {
    /// Hook and policy of a base chain.
    base: Option<(&'a str, &'a str)>,
    rules: Vec<&'a Value>,
}

type Chains<'a> = BTreeMap<Name<'a>, Chain<'a>>;

/// Evaluates a ruleset; `None` if the text is not nft's output.
pub(super) fn evaluate(text: &str, packet: &Packet) -> Option<RulesetVerdict> {
    let ruleset: Value = serde_json::from_str(text).ok()?;
    let chains = chains(ruleset.get("nftables")?.as_array()?);
    for (name, chain) in &chains {
        let Some((hook, policy)) = chain.base else {
            continue;
        };
        let (family, table, own) = *name;
        if hook != packet.hook.name() || !matches!(family, "ip" | "inet") {
            continue;
        }
        let mut certain = true;
        let what = match walk(&chains, *name, packet, &mut certain, 0) {
            Some(ChainVerdict::Drop(rule)) => rule,
            None if policy == "drop" => "policy drop".to_owned(),
            _ => continue,
        };
        if certain {
            let by = format!("nftables table {family} {table}, chain {own}: {what}");
            let accept = match table {
                "firewalld" => {
                    "firewall-cmd --permanent --add-port=PORT/udp; firewall-cmd --reload".to_owned()
                }
                _ => format!("nft insert rule {family} {table} {own} udp dport PORT accept"),
            };
            return Some(RulesetVerdict::Drop(DroppingRule {
                program: "nft",
                by,
                accept,
            }));
        }
    }
    Some(RulesetVerdict::Pass)
}

fn chains(items: &[Value]) -> Chains<'_> {
    let mut chains = Chains::new();
    for item in items {
        if let Some(chain) = item.get("chain") {
            let Some(name) = name(chain, "name") else {
                continue;
            };
            let is_filter = field(chain, "type") == Some("filter");
            let hook = field(chain, "hook").filter(|_| is_filter);
            let policy = field(chain, "policy").unwrap_or("accept");
            chains.entry(name).or_default().base = hook.map(|hook| (hook, policy));
        } else if let Some(rule) = item.get("rule")
            && let Some(name) = name(rule, "chain")
        {
            chains.entry(name).or_default().rules.push(rule);
        }
    }
    chains
}

fn field<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

fn name<'a>(value: &'a Value, chain: &str) -> Option<Name<'a>> {
    Some((
        field(value, "family")?,
        field(value, "table")?,
        field(value, chain)?,
    ))
}

fn walk(
    chains: &Chains<'_>,
    name: Name<'_>,
    packet: &Packet,
    certain: &mut bool,
    depth: usize,
) -> Option<ChainVerdict> {
    if depth > MAX_DEPTH {
        *certain = false;
        return None;
    }
    for rule in &chains.get(&name)?.rules {
        let mut matches = Match::Yes;
        let expressions = rule.get("expr").and_then(Value::as_array);
        for expression in expressions.into_iter().flatten() {
            let Some((kind, body)) = expression.as_object().and_then(|map| map.iter().next())
            else {
                continue;
            };
            let verdict = match kind.as_str() {
                "match" => {
                    matches = matches.and(condition(body, packet));
                    None
                }
                "vmap" => lookup(body, packet, &mut matches),
                "accept" | "drop" | "reject" | "return" | "jump" | "goto" => {
                    Some((kind.as_str(), body))
                }
                "counter" | "log" | "comment" | "notrack" => None,
                _ => {
                    matches = Match::Maybe.and(matches);
                    None
                }
            };
            if matches == Match::No {
                break;
            }
            let Some((kind, body)) = verdict else {
                continue;
            };
            let handle = rule.get("handle").and_then(Value::as_u64).unwrap_or(0);
            let sure = matches == Match::Yes;
            match kind {
                "accept" if sure => return Some(ChainVerdict::Accept),
                "drop" | "reject" if sure => {
                    return Some(ChainVerdict::Drop(format!(
                        "rule with handle {handle} ({kind})"
                    )));
                }
                "drop" | "reject" => {}
                "return" if sure => return None,
                "jump" | "goto" => {
                    let target = field(body, "target").unwrap_or_default();
                    let mut inner = true;
                    let end = walk(
                        chains,
                        (name.0, name.1, target),
                        packet,
                        &mut inner,
                        depth + 1,
                    );
                    *certain &= inner;
                    match end {
                        Some(_) if sure => return end,
                        Some(ChainVerdict::Accept) => *certain = false,
                        None if kind == "goto" && sure => return None,
                        None if kind == "goto" => *certain = false,
                        _ => {}
                    }
                }
                _ => *certain = false,
            }
            break;
        }
    }
    None
}

/// Looks the packet up in a verdict map. One that cannot be evaluated makes the rule uncertain, as
/// if it might accept.
fn lookup<'a>(
    body: &'a Value,
    packet: &Packet,
    matches: &mut Match,
) -> Option<(&'a str, &'a Value)> {
    const ACCEPT: &Value = &Value::Null;
    let entries = body
        .get("data")
        .and_then(|data| data.get("set")?.as_array());
    let key = body.get("key").map(|key| operand(key, packet));
    let (Some(entries), Some(Operand::Is(key))) = (entries, key) else {
        *matches = Match::Maybe.and(*matches);
        return Some(("accept", ACCEPT));
    };
    for entry in entries {
        let found = entry
            .get(0)
            .map_or(Match::Maybe, |right| compare(&key, right));
        if found == Match::No {
            continue;
        }
        *matches = matches.and(found);
        let verdict = entry.get(1)?.as_object()?.iter().next()?;
        return Some((verdict.0.as_str(), verdict.1));
    }
    *matches = Match::No;
    None
}

/// What an expression reads from the packet.
enum Operand {
    Is(Field),
    /// The field exists, but its value is unknown.
    Unknown,
    /// The packet has no such field, because it is of another protocol.
    Absent,
}

enum Field {
    Address(std::net::Ipv4Addr),
    Number(u64),
    Word(String),
    /// State of the connection: new.
    New,
}

fn operand(left: &Value, packet: &Packet) -> Operand {
    let is = |value: Option<Field>| value.map_or(Operand::Unknown, Operand::Is);
    let word = |text: &Option<String>| text.clone().map(Field::Word);
    if let Some(payload) = left.get("payload") {
        return match (field(payload, "protocol"), field(payload, "field")) {
            (Some("ip"), Some("saddr")) => is(packet.source.map(Field::Address)),
            (Some("ip"), Some("daddr")) => is(packet.destination.map(Field::Address)),
            (Some("ip"), Some("protocol")) => {
                is(packet.udp_port.map(|_| Field::Word("udp".into())))
            }
            (Some("udp" | "th"), Some("dport")) => {
                is(packet.udp_port.map(|port| Field::Number(port.into())))
            }
            (Some("tcp" | "icmp" | "sctp" | "icmpv6"), _) if packet.udp_port.is_some() => {
                Operand::Absent
            }
            (Some("ip6"), _) => Operand::Absent,
            _ => Operand::Unknown,
        };
    }
    if let Some(meta) = left.get("meta") {
        return match field(meta, "key") {
            Some("iifname" | "iif") => is(word(&packet.input)),
            Some("oifname" | "oif") => is(word(&packet.output)),
            Some("l4proto") => is(packet.udp_port.map(|_| Field::Word("udp".into()))),
            Some("nfproto") => Operand::Is(Field::Word("ipv4".into())),
            Some("protocol") => Operand::Is(Field::Word("ip".into())),
            _ => Operand::Unknown,
        };
    }
    match left.get("ct").and_then(|ct| field(ct, "key")) {
        Some("state") => Operand::Is(Field::New),
        _ => Operand::Unknown,
    }
}

fn condition(body: &Value, packet: &Packet) -> Match {
    let (Some(left), Some(right)) = (body.get("left"), body.get("right")) else {
        return Match::Maybe;
    };
    let negated = match field(body, "op") {
        Some("==" | "in") => false,
        Some("!=") => true,
        _ => return Match::Maybe,
    };
    match operand(left, packet) {
        Operand::Absent => Match::No,
        Operand::Unknown => Match::Maybe,
        Operand::Is(value) => compare(&value, right).negated_if(negated),
    }
}

/// Whether a value matches the right side: a value, a range, a prefix, a set or a list.
fn compare(value: &Field, right: &Value) -> Match {
    let sure = |yes: bool| if yes { Match::Yes } else { Match::No };
    if let Some(list) = right.get("set").unwrap_or(right).as_array() {
        let mut best = Match::No;
        for entry in list {
            // Elements with a timeout or counter are wrapped.
            let entry = entry
                .get("elem")
                .and_then(|elem| elem.get("val"))
                .unwrap_or(entry);
            match compare(value, entry) {
                Match::Yes => return Match::Yes,
                Match::Maybe => best = Match::Maybe,
                Match::No => {}
            }
        }
        return best;
    }
    if let Some(prefix) = right.get("prefix") {
        let length = prefix.get("len").and_then(Value::as_u64);
        let address = field(prefix, "addr").and_then(|text| text.parse().ok());
        let (Some(length), Some(address), Field::Address(value)) = (length, address, value) else {
            return Match::Maybe;
        };
        let length = u8::try_from(length).unwrap_or(u8::MAX);
        return Ipv4Net::new(address, length).map_or(Match::Maybe, |net| sure(net.contains(value)));
    }
    if let Some([first, last]) = right
        .get("range")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
    {
        return match value {
            Field::Number(number) => match (first.as_u64(), last.as_u64()) {
                (Some(first), Some(last)) => sure((first..=last).contains(number)),
                _ => Match::Maybe,
            },
            Field::Address(address) => {
                let bound = |end: &Value| end.as_str()?.parse::<std::net::Ipv4Addr>().ok();
                match (bound(first), bound(last)) {
                    (Some(first), Some(last)) => sure((first..=last).contains(address)),
                    _ => Match::Maybe,
                }
            }
            _ => Match::Maybe,
        };
    }
    match (value, right) {
        (_, Value::String(text)) if text.starts_with('@') => Match::Maybe,
        (Field::Address(address), Value::String(text)) => text
            .parse()
            .map_or(Match::Maybe, |other: std::net::Ipv4Addr| {
                sure(*address == other)
            }),
        (Field::Number(number), Value::Number(other)) => sure(other.as_u64() == Some(*number)),
        (Field::Word(word), Value::String(text)) => match text.strip_suffix('*') {
            Some(start) => sure(word.starts_with(start)),
            None => sure(word == text),
        },
        (Field::Word(word), Value::Number(number)) if word == "udp" => {
            sure(number.as_u64() == Some(17))
        }
        (Field::New, Value::String(text)) => sure(text == "new"),
        _ => Match::Maybe,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::tunnel;
    use super::*;

    const BASE: &str = r#"{"chain":{"family":"inet","table":"filter","name":"input","handle":1,"type":"filter","hook":"input","prio":0,"policy":"POLICY"}}"#;

    /// Whether this base chain with these rules, each a list of expressions, certainly drops a
    /// tunnel packet.
    fn drops(policy: &str, rules: &[&str]) -> bool {
        let mut items = vec![BASE.replace("POLICY", policy)];
        for rule in rules {
            let (chain, expressions) = rule.split_once(": ").unwrap_or(("input", rule));
            items.push(format!(
                r#"{{"rule":{{"family":"inet","table":"filter","chain":"{chain}","handle":7,"expr":[{expressions}]}}}}"#
            ));
        }
        let text = format!(r#"{{"nftables":[{}]}}"#, items.join(","));
        matches!(evaluate(&text, &tunnel()).unwrap(), RulesetVerdict::Drop(_))
    }

    fn port(right: &str) -> String {
        format!(
            r#"{{"match":{{"op":"==","left":{{"payload":{{"protocol":"udp","field":"dport"}}}},"right":{right}}}}},{{"counter":{{"packets":0,"bytes":0}}}},{{"accept":null}}"#
        )
    }

    #[test]
    fn the_policy_decides_if_no_rule_does() {
        assert!(drops("drop", &[]));
        assert!(!drops("accept", &[]));
        assert_eq!(evaluate("no json", &tunnel()), None);
    }

    #[test]
    fn ports_are_values_sets_and_ranges() {
        for right in [
            "8472",
            r#"{"set":[53,8472]}"#,
            r#"{"range":[8000,9000]}"#,
            r#"{"set":[{"range":[8000,9000]}]}"#,
        ] {
            assert!(!drops("drop", &[&port(right)]), "{right}");
        }
        for right in ["8473", r#"{"set":[53,443]}"#, r#"{"range":[1,1023]}"#] {
            assert!(drops("drop", &[&port(right)]), "{right}");
        }
        assert!(
            !drops("drop", &[&port(r#""@open""#)]),
            "the content of a named set is unknown"
        );
    }

    #[test]
    fn states_interfaces_and_addresses_are_compared() {
        let state = r#"{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":["established","related"]}},{"accept":null}"#;
        let lo = r#"{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"lo"}},{"accept":null}"#;
        assert!(drops("drop", &[state, lo]));
        let eth = lo.replace("\"lo\"", "\"eth*\"");
        assert!(!drops("drop", &[state, &eth]));
        let from = r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":{"prefix":{"addr":"192.0.2.0","len":24}}}},{"drop":null}"#;
        assert!(drops("accept", &[from]));
        assert!(!drops("accept", &[&from.replace("==", "!=")]));
        let tcp = r#"{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":8472}},{"accept":null}"#;
        assert!(drops("drop", &[tcp]));
    }

    #[test]
    fn verdict_maps_are_looked_up() {
        let map = |new: &str| {
            format!(
                r#"{{"vmap":{{"key":{{"ct":{{"key":"state"}}}},"data":{{"set":[["invalid",{{"drop":null}}],["established",{{"accept":null}}]{new}]}}}}}}"#
            )
        };
        assert!(drops("drop", &[&map("")]));
        assert!(!drops("drop", &[&map(r#",["new",{"accept":null}]"#)]));
        assert!(drops("accept", &[&map(r#",["new",{"drop":null}]"#)]));
    }

    #[test]
    fn jumps_come_back_and_gotos_do_not() {
        let jump = r#"{"jump":{"target":"more"}}"#;
        assert!(!drops("drop", &[jump, &format!("more: {}", port("8472"))]));
        assert!(drops("drop", &[jump, &format!("more: {}", port("53"))]));
        let goto = r#"{"goto":{"target":"more"}}"#;
        assert!(drops(
            "drop",
            &[goto, &port("8472"), &format!("more: {}", port("53"))]
        ));
    }

    #[test]
    fn what_cannot_be_judged_makes_a_drop_uncertain() {
        let xt = r#"{"xt":{"type":"match","name":"set"}},{"accept":null}"#;
        assert!(!drops("drop", &[xt]));
        let limited = r#"{"limit":{"rate":1}},{"drop":null}"#;
        assert!(!drops("accept", &[limited]));
    }
}
