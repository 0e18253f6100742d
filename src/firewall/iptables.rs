//! The rules as `iptables-restore` reads and `iptables-save` prints them.
//!
//! Both chains of ours are filled anew in one transaction for each table; the jumps to them
//! go to the end of flannel's places. Rules that flannel v0.11 put straight into the built-in
//! chains are taken out by the same transaction.

use std::fmt::Write;

use super::rules::{KUBE_PROXY_MARK, MULTICAST, Subject, Wanted};

/// The built-in tables that have rules of ours.
pub const TABLES: [Table; 2] = [Table::Nat, Table::Filter];

/// A table, with the chain of ours in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Masquerading.
    Nat,
    /// Forwarding.
    Filter,
}

impl Table {
    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
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

    /// Whether rules in this table are wanted.
    #[must_use]
    pub const fn is_wanted(self, wanted: Wanted) -> bool {
        match self {
            Self::Nat => wanted.masquerade,
            Self::Filter => wanted.forward,
        }
    }
}

/// The rules of our chain, as `iptables-save` prints them behind `-A `.
fn chain_rules(table: Table, subject: Subject, random: &str) -> Vec<String> {
    let (n, p) = (subject.network, subject.subnet);
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

/// The rules that flannel v0.11 wrote, without port randomness.
fn old_rules(table: Table, subject: Subject) -> Vec<String> {
    let (n, s) = (subject.network, subject.subnet);
    let parent = table.parent();
    match table {
        Table::Nat => vec![
            format!("{parent} -s {n} -d {n} -j RETURN"),
            format!("{parent} -s {n} ! -d {MULTICAST} -j MASQUERADE"),
            format!("{parent} ! -s {n} -d {s} -j RETURN"),
            format!("{parent} ! -s {n} -d {n} -j MASQUERADE"),
        ],
        Table::Filter => vec![
            format!("{parent} -s {n} -j ACCEPT"),
            format!("{parent} -d {n} -j ACCEPT"),
        ],
    }
}

/// What `iptables-save -t TABLE` printed, as rules behind `-A `.
fn saved(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_prefix("-A "))
}

/// Whether the rules that are there are those that should be, in order.
#[must_use]
pub fn is_complete(table: Table, subject: Subject, wanted: Wanted, present: &str) -> bool {
    let own_prefix = format!("{} ", table.chain());
    let own: Vec<_> = saved(present)
        .filter(|rule| rule.starts_with(&own_prefix))
        .collect();
    let jump = table.jump();
    let jumps = saved(present).filter(|rule| *rule == jump).count();
    if !table.is_wanted(wanted) {
        return own.is_empty() && jumps == 0;
    }
    jumps == 1 && own == chain_rules(table, subject, random(wanted))
}

/// One transaction for `iptables-restore --noflush` that brings a table from what
/// `iptables-save` printed to what is wanted; none when there is nothing to do. `former` are
/// earlier networks and subnets whose v0.11 rules may be left.
#[must_use]
pub fn transaction(
    table: Table,
    subject: Subject,
    wanted: Wanted,
    former: &[Subject],
    present: &str,
) -> Option<String> {
    let mut lines = String::new();
    let jump = table.jump();
    for rule in saved(present) {
        let is_old = former
            .iter()
            .chain([&subject])
            .flat_map(|subject| old_rules(table, *subject))
            .any(|old| rule == old || rule.strip_suffix(" --random-fully") == Some(&*old));
        if rule == jump || is_old {
            let _ = writeln!(lines, "-D {rule}");
        }
    }
    let declared = format!(":{} ", table.chain());
    let has_chain = present.lines().any(|line| line.starts_with(&declared));
    let wanted_here = table.is_wanted(wanted);
    if wanted_here {
        let _ = writeln!(lines, "-A {jump}");
        for rule in chain_rules(table, subject, random(wanted)) {
            let _ = writeln!(lines, "-A {rule}");
        }
    } else if has_chain {
        let _ = writeln!(lines, "-X {}", table.chain());
    }
    if lines.is_empty() {
        return None;
    }
    let mut text = format!("*{}\n", table.name());
    if wanted_here || has_chain {
        // Makes the chain, or empties it.
        let _ = writeln!(text, ":{} - [0:0]", table.chain());
    }
    text.push_str(&lines);
    text.push_str("COMMIT\n");
    Some(text)
}

const fn random(wanted: Wanted) -> &'static str {
    if wanted.random_ports {
        " --random-fully"
    } else {
        ""
    }
}

/// Major, minor and patch of what `iptables --version` prints: `iptables v1.8.9 (nf_tables)`.
#[must_use]
pub fn version(text: &str) -> Option<(u32, u32, u32)> {
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
