//! `uvxlan report`: collects in one file what somebody needs to help from afar.

use std::path::PathBuf;
use std::process::ExitCode;

use super::doctor::ExamineArgs;
use super::terminal::Paint;
use crate::cli::{CANT_CREATE, OK, fail, print_out};
use crate::daemon::state::atomic_file;
use crate::doctor::report;

/// Arguments of `uvxlan report`.
#[derive(clap::Args, Debug)]
#[command(after_help = NOTES)]
pub(crate) struct ReportArgs {
    /// File to write, readable by its owner only [default: stdout]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    examine: ExamineArgs,
}

const NOTES: &str = "\
The report contains the doctor's findings, version, kernel, links, addresses, routes, firewall
rules, the daemon's status, its state and subnet files, and kernel settings. It contains no
passwords and no keys, but it does contain addresses and names of your network: read it before
you pass it on.";

pub(crate) fn run(args: &ReportArgs) -> ExitCode {
    let (facts, findings) = match args.examine.examine() {
        Ok(examined) => examined,
        Err(error) => return fail("report", error.exit_status(), error),
    };
    let findings = super::doctor::text(&findings, Paint::never());
    let text = report::text(crate::cli::version(), &findings, &facts);
    let Some(file) = &args.file else {
        print_out(&text);
        return ExitCode::from(OK);
    };
    match atomic_file::write(file, text.as_bytes(), 0o600) {
        Ok(()) => {
            print_out(&format!("wrote {}\n", file.display()));
            ExitCode::from(OK)
        }
        Err(error) => fail(
            "report",
            CANT_CREATE,
            format_args!("cannot write {}: {error}", file.display()),
        ),
    }
}
