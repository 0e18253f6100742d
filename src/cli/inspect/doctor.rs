//! `uvxlan doctor`: what keeps the daemon from working, and what mends it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use super::running;
use super::status::{Paint, Socket};
use crate::cli::leases::store::{CommandError, StoreArgs};
use crate::cli::{FAILURE, OK, print_err, print_out};
use crate::daemon::options::{DEFAULT_STATE_DIR, DEFAULT_SUBNET_FILE};
use crate::doctor::facts::Facts;
use crate::doctor::gather::{self, Request};
use crate::doctor::{self, Finding, Outcome};
use crate::host::interface::Selection;

/// Arguments of `uvxlan doctor`.
#[derive(clap::Args, Debug, Clone)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// From which findings on the exit status is 1
    #[arg(long, value_name = "KIND", value_enum, default_value_t = FailOn::Warning)]
    fail_on: FailOn,
    #[command(flatten)]
    look: LookArgs,
}

/// Kinds of findings that make the doctor fail.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum FailOn {
    /// Errors and warnings
    Warning,
    /// Only what keeps the overlay from working
    Error,
}

/// Where to look: the daemon's own flags and environment.
#[derive(clap::Args, Debug, Clone)]
pub struct LookArgs {
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
    /// Regular expression for the interface
    #[arg(long, env = "FLANNELD_IFACE_REGEX", value_name = "REGEX")]
    iface_regex: Vec<String>,
    /// The interface that the route to ADDRESS takes
    #[arg(long, env = "FLANNELD_IFACE_CAN_REACH", value_name = "ADDRESS")]
    iface_can_reach: Option<Ipv4Addr>,
    /// Address that other hosts reach this one by
    #[arg(long, env = "FLANNELD_PUBLIC_IP", value_name = "ADDRESS")]
    public_ip: Option<Ipv4Addr>,
    /// The subnet file [default: the running daemon's, else flannel's]
    #[arg(long, env = "FLANNELD_SUBNET_FILE", value_name = "FILE")]
    subnet_file: Option<PathBuf>,
    /// The daemon's state directory [default: the running daemon's]
    #[arg(long, env = "UVXLAN_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl LookArgs {
    fn request(&self) -> Result<Request, CommandError> {
        let daemon = running::options();
        let path = |said: &Option<PathBuf>, running: Option<&PathBuf>, default: &str| {
            let known = said.as_ref().or(running).cloned();
            known.unwrap_or_else(|| default.into())
        };
        Ok(Request {
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
        })
    }

    /// Gathers the facts, and judges them.
    pub(crate) fn look(&self) -> Result<(Facts, Vec<Finding>), CommandError> {
        let request = self.request()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(CommandError::Runtime)?;
        let facts = runtime.block_on(gather::facts(request));
        // A name that is still being resolved must not hold up the answer.
        runtime.shutdown_background();
        let findings = doctor::examine(&facts);
        Ok((facts, findings))
    }
}

/// Checks this machine; fails where something is wrong.
#[must_use]
pub fn run(args: &DoctorArgs) -> ExitCode {
    let findings = match args.look.look() {
        Ok((_, findings)) => findings,
        Err(error) => {
            print_err(&format!("uvxlan doctor: {error}\n"));
            return ExitCode::from(error.exit_status());
        }
    };
    if args.json {
        match serde_json::to_string_pretty(&findings) {
            Ok(json) => print_out(&format!("{json}\n")),
            Err(error) => {
                print_err(&format!("uvxlan doctor: writing JSON: {error}\n"));
                return ExitCode::from(FAILURE);
            }
        }
    } else {
        print_out(&text(&findings, Paint::of_stdout()));
    }
    let failed = match args.fail_on {
        FailOn::Warning => doctor::has_findings(&findings),
        FailOn::Error => doctor::has_errors(&findings),
    };
    ExitCode::from(if failed { FAILURE } else { OK })
}

/// One line for each check, a block for each finding, and what it comes to.
pub(crate) fn text(findings: &[Finding], paint: Paint) -> String {
    let mut out = String::new();
    let width = findings.iter().map(|finding| finding.check.len()).max();
    let width = width.unwrap_or(0);
    for finding in findings {
        let word = match finding.status {
            Outcome::Ok => paint.good("ok     "),
            Outcome::Warning => paint.doubtful("warning"),
            Outcome::Error => paint.bad("ERROR  "),
            Outcome::Skipped => "skipped".to_owned(),
        };
        // Parts of it come from the datastore: no escape sequence gets to the terminal.
        let seen: String = finding.seen.chars().filter(|c| !c.is_control()).collect();
        let _ = writeln!(out, "{word}  {:<width$}  {seen}", finding.check);
        for (name, said) in [("why", &finding.cause), ("mend", &finding.remedy)] {
            if !said.is_empty() {
                let said: String = said.chars().filter(|c| !c.is_control()).collect();
                let _ = writeln!(out, "         {:>width$}  {said}", paint.heading(name));
            }
        }
    }
    let count = |status| {
        findings
            .iter()
            .filter(|finding| finding.status == status)
            .count()
    };
    let (errors, warnings) = (count(Outcome::Error), count(Outcome::Warning));
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
                status: Outcome::Error,
                seen: "held by \u{1b}[31mnc".into(),
                cause: "no tunnels".into(),
                remedy: "kill it".into(),
            },
        ];
        let plain = text(&findings, Paint::never());
        let expected = "\
ok       tun       opens
ERROR    udp-port  held by [31mnc
              why  no tunnels
             mend  kill it

1 error, 0 warnings
";
        assert_eq!(plain, expected);
    }
}
