//! The running daemon.

use crate::control::Phase;
use crate::doctor::Finding;
use crate::doctor::facts::{DaemonFacts, Facts};

/// Most names in one finding; the others are counted.
const SHOWN: usize = 5;

/// A list for a sentence, shortened.
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
pub(crate) fn life(facts: &Facts) -> Finding {
    const CHECK: &str = "daemon";
    match &facts.daemon {
        DaemonFacts::Answers(status) => match &status.node {
            Some(node) if status.phase != Phase::Serving => Finding::error(
                CHECK,
                format!("pid {} forwards nothing: {}", status.pid, status.phase),
                "the overlay device is gone and cannot be created again; something else may have its \
                 name",
                format!("ip -d link show {}", node.device),
            ),
            Some(node) => Finding::ok(
                CHECK,
                format!("serves {} (pid {})", node.subnet, status.pid),
            ),
            None => Finding::warning(
                CHECK,
                format!("pid {} is starting: {}", status.pid, status.phase),
                "it is waiting, most often for the datastore or the network config: see the findings \
                 below",
                "journalctl -u uvxlan -n 50",
            ),
        },
        DaemonFacts::Silent(tried, holder) => {
            let who = holder
                .as_ref()
                .map_or_else(|| "a daemon".to_owned(), |holder| holder.to_string());
            Finding::error(
                CHECK,
                format!(
                    "{who} holds {} but does not answer: {tried}",
                    facts.device_name()
                ),
                "the daemon is suspended or stuck, or has another --control-socket than this command",
                "systemctl restart uvxlan; or pass its --control-socket here",
            )
        }
        DaemonFacts::Absent(tried) => match &facts.files.state {
            Ok(Some(state)) => Finding::warning(
                CHECK,
                format!("not running ({tried}); it last served {}", state.subnet),
                "without the daemon no packet passes between hosts",
                "systemctl start uvxlan",
            ),
            _ => Finding::skipped(
                CHECK,
                format!("not running ({tried}), and it has never run here"),
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{FindingStatus, samples};

    #[test]
    fn a_daemon_without_its_device_is_an_error() {
        let mut facts = samples::healthy();
        let DaemonFacts::Answers(status) = &mut facts.daemon else {
            unreachable!("it answers");
        };
        status.phase = Phase::Other("rebuilding the device: no".into());
        let found = life(&facts);
        assert_eq!(found.status, FindingStatus::Error);
        assert!(found.seen.contains("rebuilding the device"), "{found:?}");
    }

    #[test]
    fn a_daemon_that_holds_the_device_but_does_not_answer_is_an_error() {
        let mut facts = samples::healthy();
        facts.daemon = DaemonFacts::Silent("no answer".into(), None);
        let finding = life(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.seen.contains("flannel.1"), "{finding:?}");
        facts.daemon = DaemonFacts::Absent("no socket".into());
        assert_eq!(life(&facts).status, FindingStatus::Warning);
        facts.files.state = Ok(None);
        assert_eq!(life(&facts).status, FindingStatus::Skipped);
    }

    #[test]
    fn long_lists_are_shortened() {
        let items: Vec<_> = (0..8).map(|number| number.to_string()).collect();
        assert_eq!(listed(&items), "0, 1, 2, 3, 4 and 3 more");
    }
}
