//! The rules as `nft -f` reads them: a table of our own, replaced in one transaction.

use std::fmt::Write;

use super::rules::{KUBE_PROXY_MARK, MULTICAST, Prefixes, Wanted};

/// Flannel's table.
pub(super) const TABLE: &str = "flannel-ipv4";
const IPV6_TABLE: &str = "flannel-ipv6";

/// The transaction that replaces the table by what is wanted.
pub(super) fn transaction(prefixes: Prefixes, wanted: Wanted) -> String {
    let mut text = removal();
    if wanted.is_nothing() {
        return text;
    }
    let (n, p) = (prefixes.network, prefixes.subnet);
    let _ = writeln!(text, "table ip {TABLE} {{");
    if wanted.masquerade {
        let random = if wanted.random_ports {
            " fully-random"
        } else {
            ""
        };
        let _ = write!(
            text,
            "\tchain postrtg {{\n\
             \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
             \t\tmeta mark {KUBE_PROXY_MARK:#010x} return\n\
             \t\tip saddr {p} ip daddr {n} return\n\
             \t\tip saddr {n} ip daddr {p} return\n\
             \t\tip saddr != {p} ip daddr {n} return\n\
             \t\tip saddr {n} ip daddr != {MULTICAST} masquerade{random}\n\
             \t\tip saddr != {n} ip daddr {n} masquerade{random}\n\
             \t}}\n"
        );
    }
    if wanted.forward {
        let _ = write!(
            text,
            "\tchain forward {{\n\
             \t\ttype filter hook forward priority filter; policy accept;\n\
             \t\tip saddr {n} accept\n\
             \t\tip daddr {n} accept\n\
             \t}}\n"
        );
    }
    text.push_str("}\n");
    text
}

/// The transaction that removes the table, if it exists.
pub(super) fn removal() -> String {
    format!("table ip {TABLE}\ndelete table ip {TABLE}\n")
}

/// The same for the IPv6 table that flannel creates too. A separate transaction, since a kernel
/// without IPv6 refuses it.
pub(super) fn removal_of_ipv6() -> String {
    format!("table ip6 {IPV6_TABLE}\ndelete table ip6 {IPV6_TABLE}\n")
}

/// The transaction that restores the table from what `nft list table` printed before; empty if
/// there was none.
pub(super) fn restoration(before: &str) -> String {
    format!("{}{before}", removal())
}

/// Whether `nft list table` printed each of the wanted rules, in order.
pub(super) fn is_complete(prefixes: Prefixes, wanted: Wanted, present: &str) -> bool {
    let wanted_text = transaction(prefixes, wanted);
    let rules = |text: &str| -> Vec<String> {
        text.lines()
            .map(str::trim)
            .filter(|line| {
                line.ends_with("return") || line.contains("masquerade") || line.ends_with("accept")
            })
            .map(str::to_owned)
            .collect()
    };
    rules(&wanted_text) == rules(present)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes() -> Prefixes {
        Prefixes {
            network: "10.42.0.0/16".parse().unwrap(),
            subnet: "10.42.3.0/24".parse().unwrap(),
        }
    }

    #[test]
    fn rules_are_flannels() {
        let wanted = Wanted {
            masquerade: true,
            forward: true,
            random_ports: true,
        };
        let expected = "table ip flannel-ipv4\ndelete table ip flannel-ipv4\ntable ip flannel-ipv4 {\n\
            \tchain postrtg {\n\
            \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
            \t\tmeta mark 0x00004000 return\n\
            \t\tip saddr 10.42.3.0/24 ip daddr 10.42.0.0/16 return\n\
            \t\tip saddr 10.42.0.0/16 ip daddr 10.42.3.0/24 return\n\
            \t\tip saddr != 10.42.3.0/24 ip daddr 10.42.0.0/16 return\n\
            \t\tip saddr 10.42.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random\n\
            \t\tip saddr != 10.42.0.0/16 ip daddr 10.42.0.0/16 masquerade fully-random\n\
            \t}\n\
            \tchain forward {\n\
            \t\ttype filter hook forward priority filter; policy accept;\n\
            \t\tip saddr 10.42.0.0/16 accept\n\
            \t\tip daddr 10.42.0.0/16 accept\n\
            \t}\n}\n";
        assert_eq!(transaction(prefixes(), wanted), expected);
        assert!(is_complete(prefixes(), wanted, expected));
        assert!(!is_complete(
            prefixes(),
            wanted,
            &expected.replace("ip daddr 10.42.0.0/16 accept", "")
        ));
    }

    #[test]
    fn each_part_alone_or_nothing() {
        let wanted = |masquerade, forward| Wanted {
            masquerade,
            forward,
            random_ports: false,
        };
        let text = transaction(prefixes(), wanted(true, false));
        assert!(text.contains("masquerade\n") && !text.contains("chain forward"));
        let text = transaction(prefixes(), wanted(false, true));
        assert!(!text.contains("masquerade") && text.contains("chain forward"));
        assert_eq!(transaction(prefixes(), wanted(false, false)), removal());
    }
}
