//! Tests that cannot run here: reported to the reader, and a failure if all have to run.

use std::fmt::Display;

/// Set by `make test`, which installs what the tests need: then only what a machine may lack
/// excuses a skipped test.
const NO_SKIP: &str = "UVXLAN_NO_SKIP";

/// Reasons that are accepted nevertheless.
const ACCEPTED_REASONS: [&str; 5] = [
    // This program exists for such kernels.
    "no kernel vxlan",
    // Forbidden by many distributions and in most containers.
    "no user namespace",
    "no IPv6",
    // Many kernels do not have it, and its absence is tested everywhere.
    "no br_netfilter",
    // The test needs a machine without one.
    "a uvxlan is installed",
];

/// Reports why a test, or a part of one, is skipped. Panics if `UVXLAN_NO_SKIP` is set, unless
/// the reason is accepted.
pub(crate) fn skipped(reason: impl Display) {
    let reason = reason.to_string();
    let accepted = ACCEPTED_REASONS.iter().any(|words| reason.contains(words));
    assert!(
        accepted || std::env::var_os(NO_SKIP).is_none(),
        "skipped, though {NO_SKIP} is set: {reason}"
    );
    println!("SKIPPED: {reason}");
}
