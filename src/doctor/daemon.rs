//! The running daemon, and what it says of its peers.

use super::facts::{Daemon, Facts};
use super::{Finding, Outcome};

/// Most names in one finding; the rest is counted.
const SHOWN: usize = 5;

/// A list for a sentence, cut.
pub(super) fn listed(items: &[String]) -> String {
    let shown = items
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match items.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Whether a daemon runs and serves.
#[must_use]
pub fn life(facts: &Facts) -> Finding {
    const CHECK: &str = "daemon";
    match &facts.daemon {
        Daemon::Answers(status) => match &status.node {
            Some(node) => Finding::ok(
                CHECK,
                format!("serves {} (pid {})", node.subnet, status.pid),
            ),
            None => Finding::warning(
                CHECK,
                format!("pid {} is starting: {}", status.pid, status.phase),
                "it waits for something, most often the datastore or its network config: see the findings below",
                "journalctl -u uvxlan -n 50",
            ),
        },
        Daemon::Silent(tried, holder) => {
            let who = holder
                .as_ref()
                .map_or_else(|| "a daemon".to_owned(), |holder| holder.to_string());
            Finding::error(
                CHECK,
                format!(
                    "{who} holds {} and does not answer: {tried}",
                    facts.device_name()
                ),
                "the daemon is stopped, stuck, or has another --control-socket than was asked",
                "systemctl restart uvxlan; or name its --control-socket here",
            )
        }
        Daemon::Absent(tried) => match &facts.files.state {
            Ok(Some(state)) => Finding::warning(
                CHECK,
                format!("none runs ({tried}); it served {} before", state.subnet),
                "without the daemon no packet passes between hosts",
                "systemctl start uvxlan",
            ),
            _ => Finding::skipped(
                CHECK,
                format!("none runs, and none ran here before: {tried}"),
            ),
        },
    }
}

/// Peers that the daemon no longer hears, or cannot send to.
#[must_use]
pub fn peers(facts: &Facts) -> Finding {
    const CHECK: &str = "peers";
    let Some(status) = facts.status() else {
        return Finding::skipped(CHECK, "only a running daemon knows which peers answer");
    };
    let in_state = |state: &str| -> Vec<String> {
        let peers = status.peers.iter().filter(|peer| peer.state == state);
        peers
            .map(|peer| match state {
                "blocked" => format!("{} at {} ({})", peer.subnet, peer.public_ip, peer.way),
                _ => format!("{} at {}", peer.subnet, peer.public_ip),
            })
            .collect()
    };
    let (blocked, silent) = (in_state("blocked"), in_state("silent"));
    if !blocked.is_empty() {
        return Finding::error(
            CHECK,
            format!("nothing is sent to {}", listed(&blocked)),
            "the datagrams would come back to this host",
            "ip route get PEER; correct that route, or the peer's --public-ip",
        );
    }
    if !silent.is_empty() {
        return Finding::new(
            CHECK,
            Outcome::Warning,
            format!("silent: {}", listed(&silent)),
            "the peer is down, or a firewall on the way drops VXLAN's UDP packets",
            "uvxlan doctor, on the silent node; uvxlan trace IP, here",
        );
    }
    Finding::ok(CHECK, format!("{} peers, none silent", status.peers.len()))
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn a_daemon_that_holds_the_device_and_is_mute_is_an_error() {
        let mut facts = samples::healthy();
        facts.daemon = Daemon::Silent("no answer".into(), None);
        let finding = life(&facts);
        assert_eq!(finding.status, Outcome::Error);
        assert!(finding.seen.contains("flannel.1"), "{finding:?}");
        facts.daemon = Daemon::Absent("no socket".into());
        assert_eq!(life(&facts).status, Outcome::Warning);
        facts.files.state = Ok(None);
        assert_eq!(life(&facts).status, Outcome::Skipped);
    }

    #[test]
    fn silent_and_blocked_peers_are_named() {
        let mut facts = samples::healthy();
        let Daemon::Answers(status) = &mut facts.daemon else {
            panic!()
        };
        status.peers[0].state = "silent".into();
        let finding = peers(&facts);
        assert_eq!(finding.status, Outcome::Warning);
        assert!(finding.seen.contains("10.5.2.0/24 at 192.0.2.2"));
        let Daemon::Answers(status) = &mut facts.daemon else {
            panic!()
        };
        status.peers[0].state = "blocked".into();
        assert_eq!(peers(&facts).status, Outcome::Error);
    }

    #[test]
    fn long_lists_are_cut() {
        let items: Vec<_> = (0..8).map(|number| number.to_string()).collect();
        assert_eq!(listed(&items), "0, 1, 2, 3, 4 and 3 more");
    }
}
