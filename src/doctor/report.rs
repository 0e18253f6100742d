//! The report: one text with everything that a helper asks for first. It never contains a
//! password, a key, or the user part of a URL.

use std::fmt::Write as _;
use std::fs;

use super::facts::{DaemonFacts, Facts};
use super::redact;
use crate::daemon::state::subnet_env;

/// Longest text of one section, in bytes. The rules of a large Kubernetes node take several
/// megabytes.
const MAX_SECTION: usize = 4 << 20;

/// `findings` are the doctor's, as text.
pub(crate) fn text(version: &str, findings: &str, facts: &Facts) -> String {
    let mut out = format!("uvxlan report\n\nversion: {version}\n{}", system());
    let sections = [
        ("findings", findings.to_owned()),
        ("daemon", daemon(facts)),
        ("state file", format!("{:#?}\n", facts.files.state)),
        ("subnet file", subnet_file(facts)),
        ("links", links(facts)),
        ("routes", routes(facts)),
        ("kernel settings", settings(facts)),
        ("datastore", datastore(facts)),
        ("iptables-save", rules(facts.firewall.iptables.as_ref())),
        (
            "iptables-legacy-save",
            rules(facts.firewall.legacy.as_ref()),
        ),
        ("nft -j list ruleset", rules(facts.firewall.nft.as_ref())),
    ];
    for (title, section) in sections {
        let _ = write!(out, "\n== {title} ==\n{}", cut(&section));
    }
    mask_users(&out)
}

fn cut(section: &str) -> String {
    if section.len() <= MAX_SECTION {
        return section.to_owned();
    }
    let end = (0..=MAX_SECTION)
        .rev()
        .find(|end| section.is_char_boundary(*end));
    let kept = section.get(..end.unwrap_or(0)).unwrap_or_default();
    format!("{kept}\n[truncated: {} bytes in total]\n", section.len())
}

fn system() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let release = read("/etc/os-release");
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    format!(
        "kernel: {}\nsystem: {}\nuptime: {} s\n",
        read("/proc/sys/kernel/osrelease").trim(),
        name.unwrap_or("unknown").trim_matches('"'),
        read("/proc/uptime").split('.').next().unwrap_or_default()
    )
}

fn daemon(facts: &Facts) -> String {
    match &facts.daemon {
        DaemonFacts::Answers(status) => match serde_json::to_string_pretty(status) {
            Ok(text) => format!("{text}\n"),
            Err(error) => format!("{error}\n"),
        },
        DaemonFacts::Silent(tried, holder) => format!("no reply: {tried}; {holder:?}\n"),
        DaemonFacts::Absent(tried) => format!("none: {tried}\n"),
    }
}

/// Our assignments and those derived from them. The values of all others are masked.
fn subnet_file(facts: &Facts) -> String {
    let path = facts.files.subnet_path.display();
    match &facts.files.subnet {
        Ok(Some(text)) => {
            let mut out = format!("{path}\n");
            for (key, value) in subnet_env::env_lines(text) {
                if key.starts_with("FLANNEL_") || key.starts_with("DOCKER_OPT_") {
                    let _ = writeln!(out, "{key}={value}");
                } else {
                    let _ = writeln!(out, "{key}=...");
                }
            }
            out
        }
        Ok(None) => format!("{path}: does not exist\n"),
        Err(error) => format!("{path}: {error}\n"),
    }
}

fn links(facts: &Facts) -> String {
    let mut out = String::new();
    for link in &facts.host.links {
        let kind = link.kind.as_deref().unwrap_or("-");
        let up = if link.up { "up" } else { "down" };
        let mac = link.mac.map_or_else(String::new, |mac| format!(" {mac}"));
        let master = link.master.map_or_else(String::new, |index| {
            format!(" in {}", facts.link_name(index))
        });
        let _ = writeln!(
            out,
            "{}: {} {kind} {up} mtu {} qlen {}{mac}{master}",
            link.index, link.name, link.mtu, link.tx_queue_len
        );
        let addresses = facts.host.addresses.iter();
        for entry in addresses.filter(|entry| entry.ifindex == link.index) {
            let _ = writeln!(out, "    {}/{}", entry.address, entry.prefix_len);
        }
    }
    let _ = writeln!(out, "external: {:?}", facts.host.external);
    out
}

fn routes(facts: &Facts) -> String {
    let mut out = String::new();
    for route in &facts.host.routes {
        let device = route.ifindex.map(|index| facts.link_name(index));
        let _ = writeln!(out, "{route} ({})", device.as_deref().unwrap_or("-"));
    }
    for (subnet, lookup) in &facts.host.lookups {
        let link = match lookup {
            Some(lookup) => facts.link_name(lookup.ifindex),
            None => "nowhere".into(),
        };
        let _ = writeln!(out, "a host in {subnet}: {link}");
    }
    let holders: Vec<_> = facts.host.holders.iter().map(ToString::to_string).collect();
    let _ = writeln!(out, "UDP port {}: {}", facts.port(), holders.join(", "));
    out
}

fn settings(facts: &Facts) -> String {
    let lines = facts.machine.sysctls.iter();
    lines
        .map(|(path, value)| format!("{path} = {value}\n"))
        .collect()
}

fn datastore(facts: &Facts) -> String {
    let store = &facts.store;
    let mut out = format!("{}\n", store.place);
    if let Some(refused) = &store.refused {
        let _ = writeln!(out, "{}", refused.text);
    }
    for member in &store.members {
        let _ = writeln!(out, "{}: {:?}", member.url, member.reply);
    }
    match &store.config {
        Some(Ok(Some(text))) => {
            let _ = writeln!(out, "config: {}", redact::record(text));
        }
        other => {
            let _ = writeln!(out, "config: {other:?}");
        }
    }
    match &store.listing {
        Some(Ok(listing)) => {
            for record in &listing.records {
                let name = record.name.escape_debug();
                let _ = writeln!(out, "{name}: {}", redact::record(&record.value));
            }
        }
        other => {
            let _ = writeln!(out, "leases: {other:?}");
        }
    }
    out
}

fn rules(read: Option<&Result<String, String>>) -> String {
    match read {
        Some(Ok(text)) => format!("{}\n", text.trim_end()),
        Some(Err(error)) => format!("{error}\n"),
        None => "not read\n".into(),
    }
}

/// Masks user and password in each URL.
fn mask_users(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | ','))
            .unwrap_or(after.len());
        let (authority, tail) = after.split_at(end);
        match authority.rsplit_once('@') {
            Some((_, host)) => {
                out.push_str("***@");
                out.push_str(host);
            }
            None => out.push_str(authority),
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn the_report_has_what_helpers_ask_for_first() {
        let text = text("1.2.3", "ok  tun\n", &samples::healthy());
        for expected in [
            "version: 1.2.3",
            "ok  tun",
            "\"phase\": \"serving\"",
            "FLANNEL_SUBNET=10.5.1.1/24",
            "3: flannel.1 tun up mtu 1450",
            "10.5.2.0/24 via 10.5.2.0",
            "net/ipv4/ip_forward = 1",
            "10.5.1.0-24: ",
            ":FORWARD ACCEPT",
        ] {
            assert!(text.contains(expected), "{expected}:\n{text}");
        }
    }

    #[test]
    fn no_secret_is_in_the_report() {
        let mut facts = samples::healthy();
        facts.store.place = "etcd http://root:geheim@10.0.0.1:2379,http://b:s3@h:1".into();
        facts.files.subnet = Ok(Some(
            b"PASSWORD=geheim\nDOCKER_OPT_BIP=\"--bip=x\"\n".to_vec(),
        ));
        let text = text("1", "", &facts);
        assert!(!text.contains("geheim") && !text.contains("s3@"), "{text}");
        assert!(text.contains("http://***@10.0.0.1:2379,http://***@h:1"));
        assert!(text.contains("PASSWORD=..."));
        assert!(text.contains("DOCKER_OPT_BIP=--bip=x"));
    }
}
