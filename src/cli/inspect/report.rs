//! `uvxlan report`: one file with what somebody needs to know who helps from afar.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use super::doctor::LookArgs;
use super::status::Paint;
use crate::cli::{CANT_CREATE, OK, print_err, print_out};
use crate::daemon::state::atomic_file;
use crate::doctor::report;

/// Arguments of `uvxlan report`.
#[derive(clap::Args, Debug, Clone)]
#[command(after_help = NOTES)]
pub struct ReportArgs {
    /// File to write, for root's eyes only; without it stdout is written to
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    look: LookArgs,
}

const NOTES: &str = "\
The report has the doctor's findings, version, kernel, links, addresses, routes, firewall
rules, the daemon's status, its state and subnet file and settings of the kernel. It has no
passwords and no keys; addresses and names of your network it does have: read it before you
give it away.";

/// Writes the report.
#[must_use]
pub fn run(args: &ReportArgs) -> ExitCode {
    let (facts, findings) = match args.look.look() {
        Ok(looked) => looked,
        Err(error) => {
            print_err(&format!("uvxlan report: {error}\n"));
            return ExitCode::from(error.exit_status());
        }
    };
    let findings = super::doctor::text(&findings, Paint::never());
    let text = report::text(crate::cli::version(), &findings, &facts);
    let Some(file) = &args.file else {
        print_out(&text);
        return ExitCode::from(OK);
    };
    let written: io::Result<()> = atomic_file::write(file, text.as_bytes(), 0o600);
    match written {
        Ok(()) => {
            print_out(&format!("wrote {}\n", file.display()));
            ExitCode::from(OK)
        }
        Err(error) => {
            print_err(&format!(
                "uvxlan report: writing {}: {error}\n",
                file.display()
            ));
            ExitCode::from(CANT_CREATE)
        }
    }
}
