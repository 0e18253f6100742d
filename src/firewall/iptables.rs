//! The rules as `iptables-restore` reads and `iptables-save` prints them.
//!
//! One transaction for each table flushes our chain, fills it, and appends the jump to it to
//! the built-in chain, as flannel does. It also deletes the rules that flannel before v0.20 put
//! into the built-in chain itself.

use std::fmt::Write;

use ipnet::Ipv4Net;

use super::rules::{KUBE_PROXY_MARK, MULTICAST, Prefixes, Wanted};

pub(super) const TABLES: [Table; 2] = [Table::Nat, Table::Filter];

/// A built-in table, with our chain in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// Masquerading.
    Nat,
    /// Forwarding.
    Filter,
}

impl Table {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }

    const fn parent(self) -> &'static str {
        match self {
            Self::Nat => "POSTROUTING",
            Self::Filter => "FORWARD",
        }
    }

    const fn chain(self) -> &'static str {
        match self {
            Self::Nat => "FLANNEL-POSTRTG",
            Self::Filter => "FLANNEL-FWD",
        }
    }

    const fn comment(self) -> &'static str {
        match self {
            Self::Nat => "-m comment --comment \"flanneld masq\"",
            Self::Filter => "-m comment --comment \"flanneld forward\"",
        }
    }

    fn jump(self) -> String {
        format!("{} {} -j {}", self.parent(), self.comment(), self.chain())
    }

    pub(super) const fn is_wanted(self, wanted: Wanted) -> bool {
        match self {
            Self::Nat => wanted.masquerade,
            Self::Filter => wanted.forward,
        }
    }
}

/// The rules of our chain, as `iptables-save` prints them after `-A `.
fn chain_rules(table: Table, prefixes: Prefixes, random: &str) -> Vec<String> {
    let (n, p) = (prefixes.network, prefixes.subnet);
    let (chain, comment) = (table.chain(), table.comment());
    let rules = match table {
        Table::Nat => vec![
            format!("-m mark --mark {KUBE_PROXY_MARK:#x}/{KUBE_PROXY_MARK:#x} {comment} -j RETURN"),
            format!("-s {p} -d {n} {comment} -j RETURN"),
            format!("-s {n} -d {p} {comment} -j RETURN"),
            format!("! -s {n} -d {p} {comment} -j RETURN"),
            format!("-s {n} ! -d {MULTICAST} {comment} -j MASQUERADE{random}"),
            format!("! -s {n} -d {n} {comment} -j MASQUERADE{random}"),
        ],
        Table::Filter => vec![
            format!("-s {n} {comment} -j ACCEPT"),
            format!("-d {n} {comment} -j ACCEPT"),
        ],
    };
    rules
        .into_iter()
        .map(|rule| format!("{chain} {rule}"))
        .collect()
}

/// Whether flannel before v0.20 put this rule into the built-in chain itself, for one of these
/// networks: without a comment up to v0.11, later with the comment that ours have too.
fn is_legacy(table: Table, all_prefixes: &[Prefixes], rule: &str) -> bool {
    let in_parent = |rule: &&str| rule.starts_with(' ');
    let Some(rule) = rule.strip_prefix(table.parent()).filter(in_parent) else {
        return false;
    };
    let rule = rule.strip_suffix(" --random-fully").unwrap_or(rule);
    let comment = format!(" {}", table.comment());
    let plain = rule.replacen(&comment, "", 1);
    let is_commented = plain.len() < rule.len();
    all_prefixes.iter().any(|prefixes| {
        let n = prefixes.network;
        if is_commented {
            return names_prefix_of(n, &plain);
        }
        match table {
            Table::Nat => {
                [
                    format!(" -s {n} -d {n} -j RETURN"),
                    format!(" -s {n} ! -d {MULTICAST} -j MASQUERADE"),
                    format!(" ! -s {n} -d {n} -j MASQUERADE"),
                ]
                .contains(&plain)
                    // For any subnet that this host may have had.
                    || plain
                        .strip_prefix(&format!(" ! -s {n} -d "))
                        .and_then(|rest| rest.strip_suffix(" -j RETURN"))
                        .is_some_and(|subnet| is_inside(n, subnet))
            }
            Table::Filter => {
                [format!(" -s {n} -j ACCEPT"), format!(" -d {n} -j ACCEPT")].contains(&plain)
            }
        }
    })
}

fn names_prefix_of(network: Ipv4Net, rule: &str) -> bool {
    rule.split(' ').any(|word| is_inside(network, word))
}

fn is_inside(network: Ipv4Net, text: &str) -> bool {
    text.parse::<Ipv4Net>()
        .is_ok_and(|prefix| network.contains(&prefix))
}

/// The rules that `iptables-save -t TABLE` printed, without `-A `.
fn saved(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_prefix("-A "))
}

/// Whether the present rules are the wanted ones, in order.
pub(super) fn is_complete(table: Table, prefixes: Prefixes, wanted: Wanted, present: &str) -> bool {
    let own_prefix = format!("{} ", table.chain());
    let own: Vec<_> = saved(present)
        .filter(|rule| rule.starts_with(&own_prefix))
        .collect();
    let jump = table.jump();
    let jumps = saved(present).filter(|rule| *rule == jump).count();
    if !table.is_wanted(wanted) {
        return own.is_empty() && jumps == 0;
    }
    jumps == 1 && own == chain_rules(table, prefixes, random(wanted))
}

/// Whether a rule of the built-in chain is ours, or an older flannel's for this host.
fn is_ours(table: Table, all_prefixes: &[Prefixes], rule: &str) -> bool {
    rule == table.jump() || is_legacy(table, all_prefixes, rule)
}

/// Whether `iptables-save` shows our chain.
fn has_chain(table: Table, saved: &str) -> bool {
    let declared = format!(":{} ", table.chain());
    saved.lines().any(|line| line.starts_with(&declared))
}

/// The transaction for `iptables-restore --noflush` that turns what `iptables-save` printed of a
/// table into what is wanted, unless it is already. `former` are earlier networks, whose rules
/// may be left in the built-in chain.
pub(super) fn transaction(
    table: Table,
    prefixes: Prefixes,
    wanted: Wanted,
    former: &[Prefixes],
    present: &str,
) -> Option<String> {
    let all_prefixes = [&[prefixes], former].concat();
    let mut lines = String::new();
    for rule in saved(present).filter(|rule| is_ours(table, &all_prefixes, rule)) {
        let _ = writeln!(lines, "-D {rule}");
    }
    let (wanted_here, has_chain) = (table.is_wanted(wanted), has_chain(table, present));
    if wanted_here {
        let _ = writeln!(lines, "-A {}", table.jump());
        for rule in chain_rules(table, prefixes, random(wanted)) {
            let _ = writeln!(lines, "-A {rule}");
        }
    } else if has_chain {
        let _ = writeln!(lines, "-X {}", table.chain());
    }
    assemble(table, wanted_here || has_chain, &lines)
}

/// The transaction that restores our part of a table from `before`, each rule at its old position
/// among the others, unless it is unchanged.
pub(super) fn restoration(
    table: Table,
    prefixes: Prefixes,
    former: &[Prefixes],
    before: &str,
    present: &str,
) -> Option<String> {
    let all_prefixes = [&[prefixes], former].concat();
    let parent = format!("{} ", table.parent());
    let chain = format!("{} ", table.chain());
    let part = |text: &str| -> Vec<String> {
        let relevant = |rule: &&str| rule.starts_with(&parent) || rule.starts_with(&chain);
        saved(text).filter(relevant).map(str::to_owned).collect()
    };
    let had_chain = has_chain(table, before);
    if part(before) == part(present) && had_chain == has_chain(table, present) {
        return None;
    }
    let in_parent = |text| saved(text).filter(|rule| rule.starts_with(&parent));
    let mut lines = String::new();
    let mut others = 0;
    for rule in in_parent(present) {
        if is_ours(table, &all_prefixes, rule) {
            let _ = writeln!(lines, "-D {rule}");
        } else {
            others += 1;
        }
    }
    let mut length = others;
    for (position, rule) in in_parent(before).enumerate() {
        if is_ours(table, &all_prefixes, rule)
            && let Some((parent, rest)) = rule.split_once(' ')
        {
            // Others' rules may have been deleted meanwhile.
            let position = position.min(length) + 1;
            let _ = writeln!(lines, "-I {parent} {position} {rest}");
            length += 1;
        }
    }
    if had_chain {
        for rule in saved(before).filter(|rule| rule.starts_with(&chain)) {
            let _ = writeln!(lines, "-A {rule}");
        }
    } else if has_chain(table, present) {
        let _ = writeln!(lines, "-X {}", table.chain());
    }
    assemble(table, had_chain || has_chain(table, present), &lines)
}

fn assemble(table: Table, with_chain: bool, lines: &str) -> Option<String> {
    if lines.is_empty() {
        return None;
    }
    // Declaring the chain creates it, or flushes it.
    let chain = match with_chain {
        true => format!(":{} - [0:0]\n", table.chain()),
        false => String::new(),
    };
    Some(format!("*{}\n{chain}{lines}COMMIT\n", table.name()))
}

const fn random(wanted: Wanted) -> &'static str {
    if wanted.random_ports {
        " --random-fully"
    } else {
        ""
    }
}

/// Major, minor and patch of what `iptables --version` prints: `iptables v1.8.9 (nf_tables)`.
pub(super) fn version(text: &str) -> Option<(u32, u32, u32)> {
    let word = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix('v'))?;
    let mut numbers = word.split('.').map(|part| part.parse().ok());
    Some((
        numbers.next()??,
        numbers.next()??,
        numbers.next().flatten().unwrap_or(0),
    ))
}

#[cfg(test)]
mod tests;
