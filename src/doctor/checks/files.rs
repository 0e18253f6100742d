//! The files that the daemon writes for other programs, and for its next start.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;

use crate::daemon::state::subnet_env;
use crate::doctor::Finding;
use crate::doctor::facts::{Facts, Served};

const SUBNET_FILE: &str = "subnet-file";

type Assignments = BTreeMap<String, String>;

/// Whether the state file can be read.
pub(crate) fn state(facts: &Facts) -> Finding {
    const CHECK: &str = "state-file";
    let path = facts.files.state_path.display();
    match &facts.files.state {
        Ok(Some(state)) => Finding::ok(CHECK, format!("{path} has {}", state.subnet)),
        Ok(None) if facts.status().is_some_and(|status| status.node.is_some()) => Finding::warning(
            CHECK,
            format!("the daemon serves a subnet, but {path} does not exist"),
            "somebody removed it, or the daemon has another --state-dir. Without it the next start \
             can learn MAC and subnet only from the lease",
            "systemctl restart uvxlan; or pass the daemon's --state-dir here",
        ),
        Ok(None) => Finding::skipped(
            CHECK,
            format!("{path} does not exist: no daemon has served a subnet here yet"),
        ),
        Err(error) => Finding::warning(
            CHECK,
            format!("{path}: {error}"),
            "the daemon will move it aside when it starts, and take MAC and subnet from its lease",
            format!("rm {path}; systemctl restart uvxlan"),
        ),
    }
}

/// Whether the subnet file matches what is served.
pub(crate) fn subnet(facts: &Facts) -> Finding {
    let path = facts.files.subnet_path.display();
    let text = match &facts.files.subnet {
        Ok(Some(text)) => text,
        Ok(None) if facts.daemon_runs() => {
            return Finding::error(
                SUBNET_FILE,
                format!("a daemon runs, but {path} does not exist"),
                "somebody removed it, or the daemon has another --subnet-file: docker and CNI plugins \
                 do not learn this node's subnet",
                "systemctl restart uvxlan; or pass the daemon's --subnet-file here",
            );
        }
        Ok(None) => {
            let seen = format!("{path} does not exist: the daemon writes it");
            return Finding::skipped(SUBNET_FILE, seen);
        }
        Err(error) => {
            return Finding::error(
                SUBNET_FILE,
                format!("{path}: {error}"),
                "docker and CNI plugins cannot read this node's subnet",
                format!("ls -l {path}; run as root"),
            );
        }
    };
    let values: Assignments = subnet_env::env_lines(text).collect();
    if !values.contains_key("FLANNEL_SUBNET") {
        return without_subnet(facts, &values);
    }
    match facts.served() {
        None => Finding::ok(SUBNET_FILE, format!("{path} exists")),
        Some(served) => compare(facts, &values, &served),
    }
}

fn compare(facts: &Facts, values: &Assignments, served: &Served) -> Finding {
    let path = facts.files.subnet_path.display();
    let stale = stale(values, served);
    if stale.is_empty() {
        return Finding::ok(SUBNET_FILE, format!("{path} has {}", served.subnet));
    }
    let fix = "systemctl restart uvxlan, then docker (or recreate the pods)";
    let seen = format!("{path}: {}", stale.join("; "));
    // The MTU alone: the interface's changed while docker's options were in the file.
    if stale.len() == 1 && stale[0].starts_with("FLANNEL_MTU") {
        let cause = "the MTU has changed since: new containers get one that does not fit";
        return Finding::warning(SUBNET_FILE, seen, cause, fix);
    }
    Finding::error(
        SUBNET_FILE,
        seen,
        "it is from an earlier run, or from another daemon: containers get addresses that no other \
         host routes here",
        fix,
    )
}

/// What the file says that differs from what is served.
fn stale(values: &Assignments, served: &Served) -> Vec<String> {
    let prefix = |key: &str| {
        let prefix = values.get(key)?.parse::<Ipv4Net>().ok()?;
        Some(prefix.trunc().to_string())
    };
    let expected = [
        (
            "FLANNEL_NETWORK",
            prefix("FLANNEL_NETWORK"),
            Some(served.network.to_string()),
        ),
        (
            "FLANNEL_SUBNET",
            prefix("FLANNEL_SUBNET"),
            Some(served.subnet.to_string()),
        ),
        (
            "FLANNEL_MTU",
            values.get("FLANNEL_MTU").cloned(),
            served.mtu.map(|mtu| mtu.to_string()),
        ),
    ];
    let differences = expected.into_iter().filter_map(|(key, found, expected)| {
        let expected = expected.filter(|expected| found.as_ref() != Some(expected))?;
        let found = found.as_deref().unwrap_or("unreadable");
        Some(format!("{key} is {found}, but should be {expected}"))
    });
    differences.collect()
}

fn without_subnet(facts: &Facts, values: &Assignments) -> Finding {
    let path = facts.files.subnet_path.display();
    if values.keys().any(|key| key.starts_with("DOCKER_")) {
        return Finding::warning(
            SUBNET_FILE,
            format!("{path} has docker's options but no FLANNEL_SUBNET"),
            "mk-docker-opts.sh -d overwrote the file that it reads. The daemon has its own copy, and \
             docker works until its options are generated again; CNI plugins and a second run of the \
             script find nothing",
            "let the script write another file (mk-docker-opts.sh -d /run/flannel/docker, and the \
             same in docker's EnvironmentFile), then systemctl restart uvxlan docker",
        );
    }
    Finding::error(
        SUBNET_FILE,
        format!("{path} has no FLANNEL_SUBNET"),
        "it is empty or belongs to another program: docker and CNI plugins do not learn this node's \
         subnet",
        "systemctl restart uvxlan",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::DaemonFacts;
    use crate::doctor::{FindingStatus, samples};

    fn with_subnet_file(text: &str) -> Finding {
        let mut facts = samples::healthy();
        facts.files.subnet = Ok(Some(text.into()));
        subnet(&facts)
    }

    #[test]
    fn a_stale_subnet_file_is_named() {
        let stale = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.9.1/24\nFLANNEL_MTU=1450\n";
        let finding = with_subnet_file(stale);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(
            finding
                .seen
                .contains("FLANNEL_SUBNET is 10.5.9.0/24, but should be 10.5.1.0/24")
        );
        let mtu = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1400\n";
        assert_eq!(with_subnet_file(mtu).status, FindingStatus::Warning);
        let garbled = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=x\nFLANNEL_MTU=1450\n";
        assert_eq!(with_subnet_file(garbled).status, FindingStatus::Error);
    }

    #[test]
    fn an_overwritten_subnet_file_is_explained() {
        let finding = with_subnet_file("DOCKER_OPT_BIP=\"--bip=10.5.1.1/24\"\n");
        assert_eq!(finding.status, FindingStatus::Warning);
        assert!(finding.cause.contains("mk-docker-opts.sh -d"));
        assert_eq!(with_subnet_file("").status, FindingStatus::Error);
    }

    #[test]
    fn a_missing_subnet_file_matters_while_a_daemon_runs() {
        let mut facts = samples::healthy();
        facts.files.subnet = Ok(None);
        assert_eq!(subnet(&facts).status, FindingStatus::Error);
        facts.daemon = DaemonFacts::Absent(String::new());
        assert_eq!(subnet(&facts).status, FindingStatus::Skipped);
    }

    #[test]
    fn a_damaged_state_file_is_a_warning() {
        let mut facts = samples::healthy();
        facts.files.state = Err("expected value at line 1".into());
        let finding = state(&facts);
        assert_eq!(finding.status, FindingStatus::Warning);
        assert!(finding.fix.starts_with("rm /var/lib/uvxlan/state.json"));
    }
}
