//! The table: names, defaults, texts, and what each flag sets; a file a group.
//!
//! flannel's part is the union of flannel v0.11.0 and the newest (their `main.go`), so that
//! no command line of theirs is refused.

mod daemon;
mod datastore;
mod files;
mod kubernetes;
mod logging;
mod rules;
mod subnet;

pub(crate) use self::datastore::STORE as STORE_FLAGS;
use super::Flag;
use crate::daemon::options::RunOptions;
use crate::daemon::options::parse::Invalid;

const FILE: &str = "the path of a file";

/// The flag that ends the program with the version; only on the command line, as flannel's.
pub(crate) const VERSION: &str = "version";

const GROUPS: &[&[Flag]] = &[
    datastore::STORE,
    datastore::START,
    subnet::FLAGS,
    files::FLAGS,
    rules::FLAGS,
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

/// One table of all groups, put together when the program is built.
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

fn ignored(_: &mut RunOptions, _: &str) -> Result<(), Invalid> {
    Ok(())
}
