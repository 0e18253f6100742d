//! Finds what keeps the daemon from working. Checks are pure functions of `facts::Facts`; only
//! `gather` reads the machine and the datastore.
#![forbid(unsafe_code)]

mod checks;
pub(crate) mod facts;
pub(crate) mod gather;
mod redact;
pub(crate) mod report;
#[cfg(test)]
mod samples;

pub use gather::read_head;

use serde::Serialize;

use self::checks::{
    daemon, datastore, device, files, firewall, leases, machine, peers, port, routes,
};
use self::facts::Facts;

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FindingStatus {
    /// Nothing is wrong.
    Ok,
    /// It works, with a drawback.
    Warning,
    /// It keeps the overlay from working.
    Error,
    /// The check was impossible, or there was nothing to check.
    Skipped,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// Name of the check.
    pub(crate) check: &'static str,
    pub(crate) status: FindingStatus,
    pub(crate) seen: String,
    /// Why that is a problem, or nothing.
    pub(crate) cause: String,
    /// What fixes it, mostly a command, or nothing.
    pub(crate) fix: String,
}

impl Finding {
    pub(crate) fn ok(check: &'static str, seen: impl Into<String>) -> Self {
        Self::new(check, FindingStatus::Ok, seen.into(), "", "")
    }

    fn skipped(check: &'static str, why: impl Into<String>) -> Self {
        Self::new(check, FindingStatus::Skipped, why.into(), "", "")
    }

    fn new(
        check: &'static str,
        status: FindingStatus,
        seen: impl Into<String>,
        cause: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            check,
            status,
            seen: seen.into(),
            cause: cause.into(),
            fix: fix.into(),
        }
    }

    fn warning(
        check: &'static str,
        seen: impl Into<String>,
        cause: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::new(check, FindingStatus::Warning, seen, cause, fix)
    }

    fn error(
        check: &'static str,
        seen: impl Into<String>,
        cause: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::new(check, FindingStatus::Error, seen, cause, fix)
    }
}

type Check = fn(&Facts) -> Finding;

/// All checks, in the order in which starting the daemon depends on them.
const CHECKS: &[Check] = &[
    daemon::life,
    machine::tun,
    machine::capabilities,
    machine::kernel,
    machine::offloads,
    datastore::members,
    datastore::tls,
    datastore::clock,
    datastore::config,
    device::interface,
    port::kernel_vxlan,
    port::holder,
    device::device,
    device::mtu,
    device::address,
    device::underlay_mtu,
    device::bridge_mtu,
    device::bridge_address,
    routes::peers,
    machine::forwarding,
    machine::rp_filter,
    machine::bridge_filter,
    firewall::input,
    firewall::output,
    firewall::forward,
    files::state,
    files::subnet,
    leases::own,
    leases::duplicates,
    leases::refused,
    peers::answers,
    peers::sizes,
];

/// Returns one finding for each check.
pub(crate) fn examine(facts: &Facts) -> Vec<Finding> {
    CHECKS.iter().map(|check| check(facts)).collect()
}

pub(crate) fn has_errors(findings: &[Finding]) -> bool {
    findings
        .iter()
        .any(|finding| finding.status == FindingStatus::Error)
}

/// Whether there are errors or warnings.
pub(crate) fn has_findings(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| {
        matches!(
            finding.status,
            FindingStatus::Error | FindingStatus::Warning
        )
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::dataplane::counters::{Counter, Kind};

    #[test]
    fn a_healthy_node_has_no_finding() {
        let facts = samples::healthy();
        let findings = examine(&facts);
        let bad: Vec<_> = findings
            .iter()
            .filter(|finding| finding.status != FindingStatus::Ok)
            .collect();
        assert!(bad.is_empty(), "{bad:#?}");
        assert!(!has_errors(&findings) && !has_findings(&findings));
    }

    #[test]
    fn each_check_has_its_own_name() {
        let findings = examine(&samples::healthy());
        let names: BTreeSet<_> = findings.iter().map(|finding| finding.check).collect();
        assert_eq!(names.len(), CHECKS.len());
    }

    #[test]
    fn the_guide_explains_each_check_and_each_drop() {
        let guide = include_str!("../../docs/troubleshooting.md");
        for finding in examine(&samples::healthy()) {
            let heading = format!("\n#### `{}`\n", finding.check);
            assert!(guide.contains(&heading), "no section of {}", finding.check);
        }
        for counter in Counter::ALL {
            let row = format!("`{}`", counter.label());
            let drop = matches!(counter.kind(), Kind::DropIn | Kind::DropOut);
            assert!(!drop || guide.contains(&row), "no word on {row}");
        }
    }

    #[test]
    fn a_host_before_the_first_start_has_no_error() {
        let findings = examine(&samples::before_the_first_start());
        assert!(!has_errors(&findings), "{findings:#?}");
    }
}
