//! The command line: what a person types and reads.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::sync::LazyLock;

use tokio::runtime::Runtime;

mod args;
pub mod docker_opts;
mod down;
mod inspect;
mod lab;
mod leases;
mod manuals;
mod run;

/// Done, or stopped by a signal.
pub(crate) const OK: u8 = 0;
pub(crate) const FAILURE: u8 = 1;
pub(crate) const USAGE: u8 = 2;
/// `EX_UNAVAILABLE`.
pub(crate) const UNAVAILABLE: u8 = 69;
/// `EX_OSERR`.
pub(crate) const NO_DEVICE: u8 = 71;
/// `EX_CANTCREAT`.
pub(crate) const CANT_CREATE: u8 = 73;
/// `EX_NOPERM`.
pub(crate) const NO_PERMISSION: u8 = 77;
/// `EX_CONFIG`.
pub(crate) const CONFIG: u8 = 78;

/// The exit statuses of `uvxlan run`, for help and documentation.
const EXIT_STATUSES: [(u8, &str); 8] = [
    (OK, "stopped by SIGTERM or SIGINT"),
    (
        FAILURE,
        "failed while starting or running; the last log line says why",
    ),
    (USAGE, "wrong command line"),
    (
        UNAVAILABLE,
        "the datastore does not answer (only with --fail-fast)",
    ),
    (NO_DEVICE, "no TUN device"),
    (CANT_CREATE, "a file cannot be written"),
    (NO_PERMISSION, "a permission is missing"),
    (
        CONFIG,
        "unusable configuration, or another host holds our public IP or subnet",
    ),
];

/// Runs the program with these arguments, its own name first.
pub fn main<A, E>(arguments: A, environment: E) -> ExitCode
where
    A: IntoIterator<Item = OsString>,
    E: IntoIterator<Item = (OsString, OsString)>,
{
    args::execute(args::interpret(arguments, environment))
}

/// What `--version` prints behind the program's name: version, then the commit if the build
/// was given one (environment `UVXLAN_COMMIT`), and the target.
fn version() -> &'static str {
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

/// Writes to stdout. A reader that has gone away (`uvxlan --help | head -1`) is not an error
/// and, unlike with `println!`, no panic.
fn print_out(text: &str) {
    discard(try_print_out(text));
}

/// The same for callers that print repeatedly and stop when nobody reads any more.
fn try_print_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes to stderr; if that is closed, there is nobody left to tell.
fn print_err(text: &str) {
    discard(io::stderr().lock().write_all(text.as_bytes()));
}

fn discard(_: io::Result<()>) {}

/// Reports why a command failed, and ends it with this status.
fn fail(command: &str, status: u8, error: impl Display) -> ExitCode {
    print_err(&format!("uvxlan {command}: {error}\n"));
    ExitCode::from(status)
}

fn print_json<T: serde::Serialize + ?Sized>(command: &str, value: &T) -> ExitCode {
    match serde_json::to_string_pretty(value) {
        Ok(text) => {
            print_out(&format!("{text}\n"));
            ExitCode::from(OK)
        }
        Err(error) => fail(command, FAILURE, format_args!("cannot write JSON: {error}")),
    }
}

/// A runtime of one thread: no command needs more.
fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// A reader of a number of seconds, for clap.
fn seconds(
    range: RangeInclusive<f64>,
) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse() {
        Ok(value) if range.contains(&value) => Ok(value),
        _ => Err(format!(
            "expected {} to {} seconds",
            range.start(),
            range.end()
        )),
    }
}

/// What belongs to the spelling most similar to `word`, if that is at least this similar
/// (0 to 1).
fn nearest<S: AsRef<str>, T>(
    word: &str,
    spellings: impl Iterator<Item = (S, T)>,
    similarity: f64,
) -> Option<T> {
    spellings
        .map(|(spelling, value)| {
            let found = strsim::normalized_damerau_levenshtein(word, spelling.as_ref());
            (found, value)
        })
        .filter(|(found, _)| *found >= similarity)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, value)| value)
}

/// Text that may hold anything, for a message: short, and without control characters.
fn excerpt(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_debug).collect()
}
