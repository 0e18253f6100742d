//! Tests that cannot be made here: said where somebody looks on, and a failure where all must
//! be made.

use std::fmt::Display;

/// Set by `make test`, which installs what the tests need: then nothing may be left out but
/// what a machine cannot be given.
const NO_SKIP: &str = "UVXLAN_NO_SKIP";

/// Words of reasons that count all the same.
const A_MACHINE_MAY_LACK: [&str; 5] = [
    // The kernel without it is what this program is for.
    "no kernel vxlan",
    // Forbidden by many distributions and in most containers.
    "no user namespace",
    "no IPv6",
    // Many kernels lack it, and its absence is tested everywhere.
    "no br_netfilter",
    // The test wants a machine without one.
    "a uvxlan is installed",
];

/// Says why a test, or a part of one, is left out.
///
/// # Panics
/// Where `UVXLAN_NO_SKIP` is set, unless a machine may lack what is missing.
pub fn skipped(reason: impl Display) {
    let reason = reason.to_string();
    let excused = A_MACHINE_MAY_LACK
        .iter()
        .any(|words| reason.contains(words));
    assert!(
        excused || std::env::var_os(NO_SKIP).is_none(),
        "left out, though {NO_SKIP} is set: {reason}"
    );
    println!("SKIPPED: {reason}");
}
