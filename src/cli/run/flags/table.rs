//! The table: name, default, texts and effect of each flag, one file for each group.
//!
//! flannel's flags are the union of v0.11.0 and the newest release (their `main.go`), so that
//! no command line of theirs is refused.

mod daemon;
mod datastore;
mod files;
mod firewall;
mod interface;
mod kubernetes;
mod lease;
mod logging;
mod peer_check;

pub(crate) use self::datastore::STORE as STORE_FLAGS;
use super::Flag;
use crate::daemon::options::RunOptions;
use crate::daemon::options::parse::Invalid;

const FILE: &str = "the path of a file";

/// Prints the version. Works on the command line only, as flannel's does.
pub(crate) const VERSION: &str = "version";

const GROUPS: &[&[Flag]] = &[
    datastore::STORE,
    datastore::START,
    interface::FLAGS,
    lease::FLAGS,
    peer_check::FLAGS,
    files::FLAGS,
    firewall::FLAGS,
    kubernetes::FLAGS,
    daemon::FLAGS,
    logging::FLAGS,
];

/// All flags, in the order of the help.
pub(crate) static FLAGS: &[Flag] = &all::<{ count() }>();

const fn count() -> usize {
    let (mut flags, mut group) = (0, 0);
    while group < GROUPS.len() {
        flags += GROUPS[group].len();
        group += 1;
    }
    flags
}

/// Joins the groups into one table at compile time.
const fn all<const N: usize>() -> [Flag; N] {
    let mut flags = [GROUPS[0][0]; N];
    let (mut at, mut group) = (0, 0);
    while group < GROUPS.len() {
        let mut number = 0;
        while number < GROUPS[group].len() {
            flags[at] = GROUPS[group][number];
            at += 1;
            number += 1;
        }
        group += 1;
    }
    flags
}

/// Stores a value that was read, or passes on why it could not be.
fn put<T>(slot: &mut T, value: Result<T, Invalid>) -> Result<(), Invalid> {
    *slot = value?;
    Ok(())
}

fn ignored(_: &mut RunOptions, _: &str) -> Result<(), Invalid> {
    Ok(())
}
