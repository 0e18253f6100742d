//! What can keep the daemon from working, cause by cause. Checks are pure functions over
//! facts; [`gather`] alone looks at the machine.
#![forbid(unsafe_code)]

pub mod daemon;
pub mod gather;
pub mod machine;

use serde::Serialize;

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
    /// Could not be looked at.
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
    fn ok(check: &'static str, seen: impl Into<String>) -> Self {
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
        seen: String,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            check,
            status,
            seen,
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }
}

/// Whether something keeps the daemon from working.
#[must_use]
pub fn has_errors(findings: &[Finding]) -> bool {
    findings
        .iter()
        .any(|finding| finding.status == Outcome::Error)
}
