//! What can keep the daemon from working, cause by cause. Checks are pure functions over
//! [`facts::Facts`]; [`gather`] alone looks at the machine and the datastore.
#![forbid(unsafe_code)]

pub mod checks;
pub mod facts;
pub mod gather;
pub mod redact;
pub mod report;
#[cfg(test)]
mod samples;

use serde::Serialize;

use self::checks::{
    daemon, datastore, device, files, firewall, leases, machine, peers, port, routes,
};
use self::facts::Facts;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing is wrong.
    Ok,
    /// Works, with a drawback.
    Warning,
    /// Keeps the daemon from working.
    Error,
    /// Could not be looked at, or there is nothing to look at.
    Skipped,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    /// How it came out.
    pub status: Outcome,
    /// What was seen.
    pub seen: String,
    /// Why that is bad; empty where nothing is.
    pub cause: String,
    /// The command that mends it; empty where nothing needs mending.
    pub remedy: String,
}

impl Finding {
    /// A check that found nothing.
    #[must_use]
    pub fn ok(check: &'static str, seen: impl Into<String>) -> Self {
        Self::new(check, Outcome::Ok, seen.into(), "", "")
    }

    /// A check that could not be made, and why.
    #[must_use]
    pub fn skipped(check: &'static str, why: impl Into<String>) -> Self {
        Self::new(check, Outcome::Skipped, why.into(), "", "")
    }

    fn new(
        check: &'static str,
        status: Outcome,
        seen: impl Into<String>,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            check,
            status,
            seen: seen.into(),
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }

    fn warning(
        check: &'static str,
        seen: impl Into<String>,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(check, Outcome::Warning, seen, cause, remedy)
    }

    fn error(
        check: &'static str,
        seen: impl Into<String>,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(check, Outcome::Error, seen, cause, remedy)
    }
}

/// One check.
type Check = fn(&Facts) -> Finding;

/// All checks, in the order in which a start depends on them.
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

/// Judges the facts: one finding for each check.
#[must_use]
pub fn examine(facts: &Facts) -> Vec<Finding> {
    CHECKS.iter().map(|check| check(facts)).collect()
}

/// Whether something keeps the daemon from working.
#[must_use]
pub fn has_errors(findings: &[Finding]) -> bool {
    findings
        .iter()
        .any(|finding| finding.status == Outcome::Error)
}

/// Whether something is wrong, if only a little.
#[must_use]
pub fn has_findings(findings: &[Finding]) -> bool {
    findings
        .iter()
        .any(|finding| matches!(finding.status, Outcome::Error | Outcome::Warning))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::dataplane::counters::{Counter, Kind};

    #[test]
    fn a_node_without_faults_has_no_finding() {
        let facts = samples::healthy();
        let findings = examine(&facts);
        let bad: Vec<_> = findings
            .iter()
            .filter(|finding| finding.status != Outcome::Ok)
            .collect();
        assert!(bad.is_empty(), "{bad:#?}");
        assert!(!has_errors(&findings) && !has_findings(&findings));
    }

    #[test]
    fn each_check_has_a_name_of_its_own() {
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
