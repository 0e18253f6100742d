//! `uvxlan doctor`: finds what keeps the overlay from working, and how to fix it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use super::running;
use super::socket::Socket;
use super::terminal::Paint;
use crate::cli::leases::store::{CommandError, StoreArgs};
use crate::cli::{FAILURE, OK, fail, print_json, print_out, runtime};
use crate::daemon::options::{DEFAULT_STATE_DIR, DEFAULT_SUBNET_FILE};
use crate::doctor::facts::Facts;
use crate::doctor::gather::{self, Request};
use crate::doctor::{self, Finding, FindingStatus};
use crate::host::interface::Selection;

/// Arguments of `uvxlan doctor`.
#[derive(clap::Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Least severe finding that makes the exit status 1
    #[arg(long, value_name = "SEVERITY", value_enum, default_value_t = FailOn::Warning)]
    fail_on: FailOn,
    #[command(flatten)]
    examine: ExamineArgs,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy)]
enum FailOn {
    /// Errors and warnings
    Warning,
    /// Only what keeps the overlay from working
    Error,
}

/// What to examine: the daemon's own flags and environment.
#[derive(clap::Args, Debug)]
pub(crate) struct ExamineArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    socket: Socket,
    /// Interface for traffic between hosts: name or address
    #[arg(
        long,
        env = "FLANNELD_IFACE",
        value_delimiter = ',',
        value_name = "IFACE"
    )]
    iface: Vec<String>,
    /// Regular expression to find the interface by
    #[arg(long, env = "FLANNELD_IFACE_REGEX", value_name = "REGEX")]
    iface_regex: Vec<String>,
    /// Use the interface of the route to ADDRESS
    #[arg(long, env = "FLANNELD_IFACE_CAN_REACH", value_name = "ADDRESS")]
    iface_can_reach: Option<Ipv4Addr>,
    /// IPv4 address at which other hosts reach this one
    #[arg(long, env = "FLANNELD_PUBLIC_IP", value_name = "ADDRESS")]
    public_ip: Option<Ipv4Addr>,
    /// The subnet file [default: the running daemon's, or flannel's]
    #[arg(long, env = "FLANNELD_SUBNET_FILE", value_name = "FILE")]
    subnet_file: Option<PathBuf>,
    /// The daemon's state directory [default: the running daemon's]
    #[arg(long, env = "UVXLAN_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl ExamineArgs {
    fn request(&self) -> Request {
        let daemon = running::options();
        let path = |given: &Option<PathBuf>, running: Option<&PathBuf>, default: &str| {
            let known = given.as_ref().or(running).cloned();
            known.unwrap_or_else(|| default.into())
        };
        Request {
            store: self.store.config(),
            selection: Selection {
                interfaces: self.iface.clone(),
                patterns: self.iface_regex.clone(),
                can_reach: self.iface_can_reach,
                public_ip: self.public_ip,
            },
            subnet_file: path(
                &self.subnet_file,
                daemon.map(|daemon| &daemon.subnet_file),
                DEFAULT_SUBNET_FILE,
            ),
            state_dir: path(
                &self.state_dir,
                daemon.map(|daemon| &daemon.state_dir),
                DEFAULT_STATE_DIR,
            ),
            control_socket: self.socket.path().to_owned(),
        }
    }

    /// Gathers the facts and judges them.
    pub(super) fn examine(&self) -> Result<(Facts, Vec<Finding>), CommandError> {
        let request = self.request();
        let runtime = runtime().map_err(CommandError::Runtime)?;
        let facts = runtime.block_on(gather::facts(request));
        // Do not wait for a name that is still being resolved.
        runtime.shutdown_background();
        let findings = doctor::examine(&facts);
        Ok((facts, findings))
    }
}

pub(crate) fn run(args: &DoctorArgs) -> ExitCode {
    let findings = match args.examine.examine() {
        Ok((_, findings)) => findings,
        Err(error) => return fail("doctor", error.exit_status(), error),
    };
    if args.json {
        print_json("doctor", &findings);
    } else {
        print_out(&text(&findings, Paint::of_stdout()));
    }
    let failed = match args.fail_on {
        FailOn::Warning => doctor::has_findings(&findings),
        FailOn::Error => doctor::has_errors(&findings),
    };
    ExitCode::from(if failed { FAILURE } else { OK })
}

/// One line for each check, a block for each finding, and a count.
pub(super) fn text(findings: &[Finding], paint: Paint) -> String {
    let mut out = String::new();
    let width = findings.iter().map(|finding| finding.check.len()).max();
    let width = width.unwrap_or(0);
    for finding in findings {
        let word = match finding.status {
            FindingStatus::Ok => paint.good("ok     "),
            FindingStatus::Warning => paint.doubtful("warning"),
            FindingStatus::Error => paint.bad("ERROR  "),
            FindingStatus::Skipped => "skipped".to_owned(),
        };
        // Parts of a text come from the datastore: no escape sequence may reach the terminal.
        let plain = |text: &str| -> String { text.chars().filter(|c| !c.is_control()).collect() };
        let seen = plain(&finding.seen);
        let _ = writeln!(out, "{word}  {:<width$}  {seen}", finding.check);
        for (name, text) in [("why", &finding.cause), ("fix", &finding.fix)] {
            if !text.is_empty() {
                let name = paint.heading(&format!("{name:>width$}"));
                let _ = writeln!(out, "         {name}  {}", plain(text));
            }
        }
    }
    let count = |status| {
        findings
            .iter()
            .filter(|finding| finding.status == status)
            .count()
    };
    let (errors, warnings) = (count(FindingStatus::Error), count(FindingStatus::Warning));
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    let _ = writeln!(
        out,
        "\n{errors} error{}, {warnings} warning{}",
        plural(errors),
        plural(warnings)
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ok_check_is_a_line_and_a_finding_a_block() {
        let findings = [
            Finding::ok("tun", "opens"),
            Finding {
                check: "udp-port",
                status: FindingStatus::Error,
                seen: "held by \u{1b}[31mnc".into(),
                cause: "no tunnels".into(),
                fix: "kill it".into(),
            },
        ];
        let plain = text(&findings, Paint::never());
        let expected = "\
ok       tun       opens
ERROR    udp-port  held by [31mnc
              why  no tunnels
              fix  kill it

1 error, 0 warnings
";
        assert_eq!(plain, expected);
    }
}
