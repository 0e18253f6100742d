//! The files that the daemon leaves for others, and for its next life.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;

use crate::daemon::state::subnet_env;
use crate::doctor::Finding;
use crate::doctor::facts::Facts;

/// Whether the state file can be read.
#[must_use]
pub fn state(facts: &Facts) -> Finding {
    const CHECK: &str = "state-file";
    let path = facts.files.state_path.display();
    match &facts.files.state {
        Ok(Some(state)) => Finding::ok(CHECK, format!("{path} says {}", state.subnet)),
        Ok(None) if facts.status().is_some_and(|status| status.node.is_some()) => Finding::warning(
            CHECK,
            format!("there is no {path}, though the daemon serves"),
            "somebody removed it, or the daemon has another --state-dir; without it the next start \
             depends on the lease for its MAC and subnet",
            "systemctl restart uvxlan; or name the daemon's --state-dir here",
        ),
        Ok(None) => Finding::skipped(
            CHECK,
            format!("there is no {path}: no daemon served here yet"),
        ),
        Err(error) => Finding::warning(
            CHECK,
            format!("{path}: {error}"),
            "the daemon will move it aside at its start, and take MAC and subnet from its lease",
            format!("rm {path}; systemctl restart uvxlan"),
        ),
    }
}

/// Whether the subnet file says what is served.
#[must_use]
pub fn subnet(facts: &Facts) -> Finding {
    const CHECK: &str = "subnet-file";
    let path = facts.files.subnet_path.display();
    let text = match &facts.files.subnet {
        Ok(Some(text)) => text,
        Ok(None) if facts.alive() => {
            return Finding::error(
                CHECK,
                format!("there is no {path}, though a daemon runs"),
                "somebody removed it, or the daemon has another --subnet-file: docker and CNI plugins \
                 do not learn this node's subnet",
                "systemctl restart uvxlan; or name the daemon's --subnet-file here",
            );
        }
        Ok(None) => {
            return Finding::skipped(CHECK, format!("there is no {path}: the daemon writes it"));
        }
        Err(error) => {
            return Finding::error(
                CHECK,
                format!("{path}: {error}"),
                "docker and CNI plugins cannot read this node's subnet",
                format!("ls -l {path}; run as root"),
            );
        }
    };
    let values: BTreeMap<_, _> = subnet_env::env_lines(text).collect();
    if !values.contains_key("FLANNEL_SUBNET") {
        return without_subnet(facts, &values);
    }
    let Some(served) = facts.served() else {
        return Finding::ok(CHECK, format!("{path} is there"));
    };
    let prefix = |key: &str| {
        let text = values.get(key)?;
        text.parse::<Ipv4Net>().ok().map(|prefix| prefix.trunc())
    };
    let is = [
        (
            "FLANNEL_NETWORK",
            prefix("FLANNEL_NETWORK").map(|net| net.to_string()),
            Some(served.network.to_string()),
        ),
        (
            "FLANNEL_SUBNET",
            prefix("FLANNEL_SUBNET").map(|net| net.to_string()),
            Some(served.subnet.to_string()),
        ),
        (
            "FLANNEL_MTU",
            values.get("FLANNEL_MTU").cloned(),
            served.mtu.map(|mtu| mtu.to_string()),
        ),
    ];
    let stale: Vec<_> = is
        .iter()
        .filter(|(_, found, wanted)| wanted.is_some() && found != wanted)
        .filter_map(|(key, found, wanted)| {
            let found = found.as_deref().unwrap_or("nothing that can be read");
            Some(format!("{key} is {found}, served is {}", wanted.as_ref()?))
        })
        .collect();
    if stale.is_empty() {
        return Finding::ok(CHECK, format!("{path} says {}", served.subnet));
    }
    // The MTU alone: the interface changed while docker's options lay in the file.
    let only_mtu = stale.len() == 1 && stale[0].starts_with("FLANNEL_MTU");
    let cause = if only_mtu {
        "the MTU changed since: new containers get one that does not fit"
    } else {
        "an earlier life of the daemon, or another one, wrote it: containers get addresses that no \
         other host routes here"
    };
    let remedy = "systemctl restart uvxlan, then docker (or make the pods anew)";
    let seen = format!("{path}: {}", stale.join("; "));
    if only_mtu {
        Finding::warning(CHECK, seen, cause, remedy)
    } else {
        Finding::error(CHECK, seen, cause, remedy)
    }
}

fn without_subnet(facts: &Facts, values: &BTreeMap<String, String>) -> Finding {
    const CHECK: &str = "subnet-file";
    let path = facts.files.subnet_path.display();
    if values.keys().any(|key| key.starts_with("DOCKER_")) {
        return Finding::warning(
            CHECK,
            format!("{path} holds docker's options and no FLANNEL_SUBNET"),
            "mk-docker-opts.sh -d wrote its answer over the file that it reads. The daemon keeps a \
             copy of its own, and docker works until its options are made anew; CNI plugins and a \
             second run of the script find nothing",
            "give the script another file (mk-docker-opts.sh -d /run/flannel/docker, and the same in \
             docker's EnvironmentFile), then systemctl restart uvxlan docker",
        );
    }
    Finding::error(
        CHECK,
        format!("{path} names no FLANNEL_SUBNET"),
        "it is empty, or something else's: docker and CNI plugins do not learn this node's subnet",
        "systemctl restart uvxlan",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::Daemon;
    use crate::doctor::{Outcome, samples};

    fn with_subnet_file(text: &str) -> Finding {
        let mut facts = samples::healthy();
        facts.files.subnet = Ok(Some(text.into()));
        subnet(&facts)
    }

    #[test]
    fn a_subnet_file_that_lags_behind_is_named() {
        let stale = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.9.1/24\nFLANNEL_MTU=1450\n";
        let finding = with_subnet_file(stale);
        assert_eq!(finding.status, Outcome::Error);
        assert!(
            finding
                .seen
                .contains("FLANNEL_SUBNET is 10.5.9.0/24, served is 10.5.1.0/24")
        );
        let mtu = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1400\n";
        assert_eq!(with_subnet_file(mtu).status, Outcome::Warning);
        let garbled = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=x\nFLANNEL_MTU=1450\n";
        assert_eq!(with_subnet_file(garbled).status, Outcome::Error);
    }

    #[test]
    fn an_overwritten_subnet_file_is_explained() {
        let finding = with_subnet_file("DOCKER_OPT_BIP=\"--bip=10.5.1.1/24\"\n");
        assert_eq!(finding.status, Outcome::Warning);
        assert!(finding.cause.contains("mk-docker-opts.sh -d"));
        assert_eq!(with_subnet_file("").status, Outcome::Error);
    }

    #[test]
    fn a_missing_subnet_file_matters_while_a_daemon_runs() {
        let mut facts = samples::healthy();
        facts.files.subnet = Ok(None);
        assert_eq!(subnet(&facts).status, Outcome::Error);
        facts.daemon = Daemon::Absent(String::new());
        assert_eq!(subnet(&facts).status, Outcome::Skipped);
    }

    #[test]
    fn a_damaged_state_file_is_a_warning() {
        let mut facts = samples::healthy();
        facts.files.state = Err("expected value at line 1".into());
        let finding = state(&facts);
        assert_eq!(finding.status, Outcome::Warning);
        assert!(finding.remedy.starts_with("rm /var/lib/uvxlan/state.json"));
    }
}
