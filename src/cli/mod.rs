//! What a person types and reads.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::sync::LazyLock;

pub mod args;
pub mod docker_opts;
pub mod down;
pub mod inspect;
pub mod lab;
pub mod leases;
pub mod manuals;
pub mod run;

/// Exit status: done, or stopped by a signal.
pub const OK: u8 = 0;
/// Exit status: failed while running.
pub const FAILURE: u8 = 1;
/// Exit status: the command line is wrong.
pub const USAGE: u8 = 2;
/// Exit status: the datastore cannot be reached (`EX_UNAVAILABLE`), with `--fail-fast`.
pub const UNAVAILABLE: u8 = 69;
/// Exit status: no TUN device to be had (`EX_OSERR`).
pub const NO_DEVICE: u8 = 71;
/// Exit status: a file cannot be written (`EX_CANTCREAT`).
pub const CANT_CREATE: u8 = 73;
/// Exit status: a permission is missing (`EX_NOPERM`).
pub const NO_PERMISSION: u8 = 77;
/// Exit status: the configuration cannot be used (`EX_CONFIG`).
pub const CONFIG: u8 = 78;

/// What `--version` prints behind the program's name: version, then the commit where the
/// build was told it (environment `UVXLAN_COMMIT`), and the target.
#[must_use]
pub fn version() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let commit = option_env!("UVXLAN_COMMIT").map(|commit| format!("{commit}, "));
        format!(
            "{} ({}{}-{})",
            env!("CARGO_PKG_VERSION"),
            commit.unwrap_or_default(),
            std::env::consts::ARCH,
            std::env::consts::OS
        )
    });
    &TEXT
}

/// Writes to stdout. A reader that went away (`uvxlan --help | head -1`) is no error and,
/// unlike with `println!`, no panic.
pub fn print_out(text: &str) {
    discard(try_print_out(text));
}

/// The same, for those who print again and again and must notice when nobody reads any more.
fn try_print_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes to stderr; where that is closed there is nobody left to tell.
pub fn print_err(text: &str) {
    discard(io::stderr().lock().write_all(text.as_bytes()));
}

fn discard(_: io::Result<()>) {}
