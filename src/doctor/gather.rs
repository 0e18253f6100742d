//! Looks at the machine for the checks.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use caps::{CapSet, Capability};

use super::{Finding, machine};
use crate::sys::kernel;

/// Looks at this machine and judges what is seen.
#[must_use]
pub fn machine() -> Vec<Finding> {
    let held = caps::read(None, CapSet::Effective).map_err(|error| error.to_string());
    let has = |capability: Capability| held.as_ref().map(|set| set.contains(&capability));
    vec![
        machine::tun(&open_tun(Path::new("/dev/net/tun"))),
        machine::capabilities(
            has(Capability::CAP_NET_ADMIN).map_err(String::as_str),
            has(Capability::CAP_NET_RAW).map_err(String::as_str),
        ),
        machine::kernel(kernel::version()),
    ]
}

fn open_tun(path: &Path) -> io::Result<()> {
    // Opening alone makes no device.
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map(drop)
}
