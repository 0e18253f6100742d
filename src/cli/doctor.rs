//! `uvxlan doctor`: what keeps the daemon from working, and what mends it.

use std::fmt::Write as _;
use std::process::ExitCode;

use super::status::Socket;
use super::{FAILURE, OK, print_err, print_out};
use crate::doctor::{self, Finding, Outcome};

/// Arguments of `uvxlan doctor`.
#[derive(clap::Args, Debug, Clone)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

/// Checks this machine; fails where something is wrong.
#[must_use]
pub fn run(args: &DoctorArgs) -> ExitCode {
    let mut findings = doctor::gather::machine();
    match args.socket.status() {
        Ok(status) => findings.extend([
            doctor::daemon::peers(&status),
            doctor::daemon::refused(&status),
        ]),
        Err(error) => findings.extend(
            ["peers", "refused-records"].map(|check| Finding::skipped(check, error.to_string())),
        ),
    }
    if args.json {
        match serde_json::to_string_pretty(&findings) {
            Ok(json) => print_out(&format!("{json}\n")),
            Err(error) => {
                print_err(&format!("uvxlan doctor: writing JSON: {error}\n"));
                return ExitCode::from(FAILURE);
            }
        }
    } else {
        print_out(&text(&findings));
    }
    ExitCode::from(if doctor::has_errors(&findings) {
        FAILURE
    } else {
        OK
    })
}

fn text(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let word = match finding.status {
            Outcome::Ok => "ok",
            Outcome::Warning => "warning",
            Outcome::Error => "ERROR",
            Outcome::Skipped => "skipped",
        };
        let _ = writeln!(out, "{word:<8} {:<16} {}", finding.check, finding.seen);
        for (name, said) in [("cause", &finding.cause), ("remedy", &finding.remedy)] {
            if !said.is_empty() {
                let _ = writeln!(out, "         {name:<16} {said}");
            }
        }
    }
    out
}
