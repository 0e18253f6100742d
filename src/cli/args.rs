//! The program's commands, and the way from an argument list to one of them.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{Command, FromArgMatches, Subcommand};

use super::docker_opts::{self, DockerOptsArgs};
use super::down::{self, DownArgs};
use super::manuals::{self, CompletionsArgs, ManArgs};
use crate::cli::OK;
use crate::cli::USAGE;
use crate::cli::inspect::capture::{self, CaptureArgs};
use crate::cli::inspect::doctor::{self, DoctorArgs};
use crate::cli::inspect::ping::{self, PingArgs};
use crate::cli::inspect::report::{self, ReportArgs};
use crate::cli::inspect::status::{self, StatusArgs};
use crate::cli::inspect::top::{self, TopArgs};
use crate::cli::inspect::trace::{self, TraceArgs};
use crate::cli::lab::bench::{self, BenchArgs};
use crate::cli::lab::demo::{self, DemoArgs};
use crate::cli::leases::config::{self, ConfigArgs};
use crate::cli::leases::lease::{self, LeaseArgs};
use crate::cli::print_err;
use crate::cli::print_out;
use crate::cli::run;
use crate::cli::run::flags;
use crate::cli::run::flannel_args::{self, ArgsError, Invocation, RunOptions};
use crate::cli::run::help;
use crate::cli::version;

const NAME: &str = "uvxlan";

const ABOUT: &str = "\
A drop-in for flannel's vxlan backend that needs no vxlan in the kernel.
Leases lie in etcd as flannel's do; packets go through a TUN device and a UDP socket.";

const EXAMPLES: &str = "\
Examples:
  uvxlan run --etcd-endpoints=http://10.0.0.1:2379 --iface=eth1
  uvxlan run --store=dir:/mnt/shared/leases
  uvxlan help run

Called as flanneld, the program is 'uvxlan run' and takes flannel's arguments.";

/// The commands that clap reads; `run` is read by [`flannel_args`].
#[derive(Subcommand, Debug)]
enum Parsed {
    /// Write Docker's options from the subnet file
    DockerOpts(DockerOptsArgs),
    /// Show a network of two nodes on this machine
    Demo(DemoArgs),
    /// Measure this program beside the kernel's vxlan, on this machine
    Bench(BenchArgs),
    /// Remove the device flannel.N that a daemon left, and its routes
    Down(DownArgs),
    /// Show what the running daemon knows: node, peers, drops
    Status(StatusArgs),
    /// Find what keeps the daemon from working
    Doctor(Box<DoctorArgs>),
    /// Write what helpers need to know into one file, without secrets
    Report(Box<ReportArgs>),
    /// Show which way a packet takes, and where it would be dropped
    Trace(TraceArgs),
    /// Watch the running daemon: traffic, peers, drops, packet threads
    Top(TopArgs),
    /// Ask a peer or a container over the overlay, with small and large packets
    Ping(PingArgs),
    /// Write packets as the daemon sees them to a file for Wireshark, drops with their reasons
    Capture(CaptureArgs),
    /// List, show, reserve and release leases
    Lease(LeaseArgs),
    /// Check, show and write the network config
    Config(ConfigArgs),
    /// Write manual pages
    #[command(hide = true)]
    Man(ManArgs),
    /// Print completions for a shell
    #[command(hide = true)]
    Completions(CompletionsArgs),
}

/// What an argument list asks for.
#[derive(Debug)]
pub enum Action {
    /// Run the daemon.
    Run(Box<RunOptions>),
    /// Write Docker's options.
    DockerOpts(DockerOptsArgs),
    /// Run the demo.
    Demo(DemoArgs),
    /// Measure.
    Bench(BenchArgs),
    /// Remove a device that was left.
    Down(DownArgs),
    /// Show what the daemon knows.
    Status(StatusArgs),
    /// Find what is wrong.
    Doctor(Box<DoctorArgs>),
    /// Write a report.
    Report(Box<ReportArgs>),
    /// Show a packet's way.
    Trace(TraceArgs),
    /// Watch the daemon.
    Top(TopArgs),
    /// Send echo requests.
    Ping(PingArgs),
    /// Capture packets.
    Capture(CaptureArgs),
    /// Look at leases, or change them.
    Lease(Box<LeaseArgs>),
    /// Look at the network config, or write it.
    Config(Box<ConfigArgs>),
    /// Write manual pages.
    Man(ManArgs),
    /// Print completions.
    Completions(CompletionsArgs),
    /// Print to stdout, and end with [`OK`].
    Answer(String),
    /// Print to stderr, and end with this status.
    Refuse(String, u8),
}

/// The command tree, for help and for what is made from it.
#[must_use]
pub fn command() -> Command {
    let tree = Command::new(NAME)
        .version(version())
        .subcommand_required(true)
        .subcommand(help::run_command("run"));
    // The derived part brings a description of its own: ours comes after it.
    Parsed::augment_subcommands(tree)
        .about(ABOUT)
        .long_about(ABOUT)
        .after_help("Flags of the daemon: uvxlan run --help")
        .after_long_help(EXAMPLES)
}

/// Understands an argument list, program name first, and the environment. Pure: prints,
/// opens and asks nothing.
pub fn interpret<A, E>(arguments: A, environment: E) -> Action
where
    A: IntoIterator<Item = OsString>,
    E: IntoIterator<Item = (OsString, OsString)>,
{
    let mut arguments = arguments.into_iter();
    let program = arguments.next().unwrap_or_default();
    let first = arguments.next();
    if is_flanneld(&program) {
        // flannel has no commands, and no argument like this: it comes from mk-docker-opts.sh
        // beside a program that was installed in flanneld's place.
        return match first {
            Some(first) if first == "docker-opts" => parsed(first, arguments),
            first => daemon("flanneld", first.into_iter().chain(arguments), environment),
        };
    }
    let Some(first) = first else {
        return Action::Refuse(format!("{}\n", command().render_help()), USAGE);
    };
    match first.to_str().map(str::trim_ascii) {
        Some("run") => daemon("uvxlan run", arguments, environment),
        Some("-V" | "-version" | "--version") => Action::Answer(version_line()),
        Some("-h") => Action::Answer(command().render_help().to_string()),
        Some("-help" | "--help") => Action::Answer(command().render_long_help().to_string()),
        Some(flag) if flag.starts_with('-') => Action::Refuse(flag_without_command(flag), USAGE),
        _ => parsed(first, arguments),
    }
}

/// Does what was asked for.
#[must_use]
pub fn execute(action: Action) -> ExitCode {
    match action {
        Action::Run(options) => run::run(*options),
        Action::DockerOpts(args) => docker_opts::run(&args),
        Action::Demo(args) => demo::run(&args),
        Action::Bench(args) => bench::run(&args),
        Action::Down(args) => down::run(&args),
        Action::Status(args) => status::run(&args),
        Action::Doctor(args) => doctor::run(&args),
        Action::Report(args) => report::run(&args),
        Action::Trace(args) => trace::run(&args),
        Action::Top(args) => top::run(&args),
        Action::Ping(args) => ping::run(&args),
        Action::Capture(args) => capture::run(&args),
        Action::Lease(args) => lease::run(&args),
        Action::Config(args) => config::run(&args),
        Action::Man(args) => manuals::man(&args, command()),
        Action::Completions(args) => manuals::completions(&args, command()),
        Action::Answer(text) => {
            print_out(&text);
            ExitCode::from(OK)
        }
        Action::Refuse(text, code) => {
            print_err(&text);
            ExitCode::from(code)
        }
    }
}

/// Whether the program was called by flannel's name: `flanneld`, or `flanneld-amd64` and
/// the like, as flannel's releases name it.
fn is_flanneld(program: &OsStr) -> bool {
    let name = std::path::Path::new(program)
        .file_name()
        .unwrap_or_default();
    name.to_string_lossy().starts_with("flanneld")
}

fn version_line() -> String {
    format!("{NAME} {}\n", version())
}

fn daemon<A, E>(program: &'static str, arguments: A, environment: E) -> Action
where
    A: IntoIterator<Item = OsString>,
    E: IntoIterator<Item = (OsString, OsString)>,
{
    match flannel_args::parse(arguments, environment) {
        Ok(Invocation::Run(options)) => Action::Run(options),
        Ok(Invocation::ShortHelp) => Action::Answer(help::run_help(program, false)),
        Ok(Invocation::LongHelp) => Action::Answer(help::run_help(program, true)),
        Ok(Invocation::Version) => Action::Answer(version_line()),
        Err(error) => Action::Refuse(refusal(program, &error), error.exit_code()),
    }
}

fn refusal(program: &str, error: &ArgsError) -> String {
    let more = match error.exit_code() {
        USAGE => format!("For the flags, see '{program} --help'.\n"),
        _ => String::new(),
    };
    format!("{program}: {error}\n{more}")
}

/// Names the first flag only: what stands behind it may be a password.
fn flag_without_command(argument: &str) -> String {
    let end = |character: char| character == '=' || character.is_ascii_whitespace();
    let name = argument
        .split(end)
        .next()
        .unwrap_or_default()
        .trim_start_matches('-');
    let flag = flags::dashed(&name.escape_debug().take(60).collect::<String>());
    if flags::find(name).is_some() {
        format!("{NAME}: {flag} is a flag of the daemon; did you mean '{NAME} run {flag} …'?\n")
    } else {
        format!(
            "{NAME}: expected a command before {flag}; did you mean '{NAME} run {flag} …'?\n\
             For the commands, see '{NAME} --help'.\n"
        )
    }
}

fn unknown_command(command: &Command, word: &str) -> String {
    // clap's own suggestion misses short words (rnu for run).
    let nearest = command
        .get_subcommands()
        .map(|known| {
            (
                strsim::normalized_damerau_levenshtein(word, known.get_name()),
                known,
            )
        })
        .filter(|(similarity, _)| *similarity >= 0.4)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, known)| format!("; did you mean '{NAME} {}'?", known.get_name()))
        .unwrap_or_default();
    let shown: String = word.chars().take(60).flat_map(char::escape_debug).collect();
    format!("{NAME}: unknown command {shown}{nearest}\nFor the commands, see '{NAME} --help'.\n")
}

fn parsed(first: OsString, rest: impl Iterator<Item = OsString>) -> Action {
    let mut command = command();
    command.build();
    if command.find_subcommand(&first).is_none() {
        return Action::Refuse(unknown_command(&command, &first.to_string_lossy()), USAGE);
    }
    let words = [OsString::from(NAME), first].into_iter().chain(rest);
    let matches = command.try_get_matches_from(words);
    match matches.and_then(|matches| Parsed::from_arg_matches(&matches)) {
        Ok(Parsed::DockerOpts(args)) => Action::DockerOpts(args),
        Ok(Parsed::Demo(args)) => Action::Demo(args),
        Ok(Parsed::Bench(args)) => Action::Bench(args),
        Ok(Parsed::Down(args)) => Action::Down(args),
        Ok(Parsed::Status(args)) => Action::Status(args),
        Ok(Parsed::Doctor(args)) => Action::Doctor(args),
        Ok(Parsed::Report(args)) => Action::Report(args),
        Ok(Parsed::Trace(args)) => Action::Trace(args),
        Ok(Parsed::Top(args)) => Action::Top(args),
        Ok(Parsed::Ping(args)) => Action::Ping(args),
        Ok(Parsed::Capture(args)) => Action::Capture(args),
        Ok(Parsed::Lease(args)) => Action::Lease(Box::new(args)),
        Ok(Parsed::Config(args)) => Action::Config(Box::new(args)),
        Ok(Parsed::Man(args)) => Action::Man(args),
        Ok(Parsed::Completions(args)) => Action::Completions(args),
        Err(error) if error.use_stderr() => Action::Refuse(error.render().to_string(), USAGE),
        Err(answer) => Action::Answer(answer.render().to_string()),
    }
}

#[cfg(test)]
mod tests;
