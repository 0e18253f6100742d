//! The program's commands, and how an argument list selects one.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{Command, FromArgMatches, Subcommand};

use super::docker_opts::{self, DockerOptsArgs};
use super::down::{self, DownArgs};
use super::inspect::capture::{self, CaptureArgs};
use super::inspect::doctor::{self, DoctorArgs};
use super::inspect::ping::{self, PingArgs};
use super::inspect::report::{self, ReportArgs};
use super::inspect::status::{self, StatusArgs};
use super::inspect::top::{self, TopArgs};
use super::inspect::trace::{self, TraceArgs};
use super::lab::bench::{self, BenchArgs};
use super::lab::demo::{self, DemoArgs};
use super::leases::config::{self, ConfigArgs};
use super::leases::lease::{self, LeaseArgs};
use super::manuals::{self, CompletionsArgs, ManArgs};
use super::run::flannel_args::{self, ArgsError, Invocation, RunOptions};
use super::run::{self, flags, help};
use super::{OK, USAGE, excerpt, nearest, print_err, print_out, version};

const NAME: &str = "uvxlan";

const ABOUT: &str = "\
A drop-in replacement for flannel's vxlan backend that needs no vxlan in the kernel.
It keeps leases in etcd as flannel does, and carries packets through a TUN device and a UDP socket.";

const EXAMPLES: &str = "\
Examples:
  uvxlan run --etcd-endpoints=http://10.0.0.1:2379 --iface=eth1
  uvxlan run --store=dir:/mnt/shared/leases
  uvxlan help run

When called as flanneld, the program behaves as 'uvxlan run' and takes flannel's arguments.";

/// The commands that clap reads; `run` is read by [`flannel_args`].
#[derive(Subcommand, Debug)]
pub(super) enum CliCommand {
    /// Show the running daemon's node, datastore, peers and drops
    Status(StatusArgs),
    /// Watch traffic, peers, drops and packet threads live
    Top(TopArgs),
    /// Find out what keeps the overlay from working, and how to fix it
    Doctor(Box<DoctorArgs>),
    /// Trace a packet to a container, step by step, without sending it
    Trace(TraceArgs),
    /// Ping a peer or a container over the overlay, with small and large packets
    Ping(PingArgs),
    /// Capture packets for Wireshark, dropped ones with the reason
    Capture(CaptureArgs),
    /// Collect what somebody needs to help you, without secrets
    Report(Box<ReportArgs>),
    /// List, show, reserve and release leases
    Lease(Box<LeaseArgs>),
    /// Check, show and write the network config
    Config(Box<ConfigArgs>),
    /// Write Docker's options from the subnet file
    DockerOpts(DockerOptsArgs),
    /// Remove the device flannel.N that a stopped daemon left, with its routes
    Down(DownArgs),
    /// Set up a network of two nodes on this machine and show it at work
    Demo(DemoArgs),
    /// Compare this program with the kernel's vxlan on this machine
    Bench(BenchArgs),
    /// Write the manual pages
    #[command(hide = true)]
    Man(ManArgs),
    /// Print docs/flags.md
    #[command(hide = true)]
    Flags,
    /// Print completions for a shell
    #[command(hide = true)]
    Completions(CompletionsArgs),
}

/// What an argument list asks for.
#[derive(Debug)]
pub(super) enum Action {
    Run(Box<RunOptions>),
    Command(CliCommand),
    /// Print to stdout, and end with [`OK`].
    Print(String),
    /// Print to stderr, and end with this status.
    Refuse(String, u8),
}

/// The command tree, for help and for what is made from it.
pub(super) fn command() -> Command {
    let tree = Command::new(NAME)
        .version(version())
        .subcommand_required(true)
        .subcommand(help::run_command("run"));
    // The derived part sets a description of its own, so ours has to come after it.
    CliCommand::augment_subcommands(tree)
        .about(ABOUT)
        .long_about(ABOUT)
        .after_help("Flags of the daemon: uvxlan run --help")
        .after_long_help(EXAMPLES)
}

/// Reads an argument list, program name first, and the environment. Pure: it prints and
/// opens nothing.
pub(super) fn interpret<A, E>(arguments: A, environment: E) -> Action
where
    A: IntoIterator<Item = OsString>,
    E: IntoIterator<Item = (OsString, OsString)>,
{
    let mut arguments = arguments.into_iter();
    let program = arguments.next().unwrap_or_default();
    let first = arguments.next();
    if is_flanneld(&program) {
        // flannel has no commands. Only mk-docker-opts.sh passes this word, when it stands
        // beside a program that was installed in flanneld's place.
        return match first {
            Some(first) if first == "docker-opts" => by_clap(first, arguments),
            first => daemon("flanneld", first.into_iter().chain(arguments), environment),
        };
    }
    let Some(first) = first else {
        return Action::Refuse(format!("{}\n", command().render_help()), USAGE);
    };
    match first.to_str().map(str::trim_ascii) {
        Some("run") => daemon("uvxlan run", arguments, environment),
        Some("-V" | "-version" | "--version") => Action::Print(version_line()),
        Some("-h") => Action::Print(command().render_help().to_string()),
        Some("-help" | "--help") => Action::Print(command().render_long_help().to_string()),
        Some(flag) if flag.starts_with('-') => Action::Refuse(flag_without_command(flag), USAGE),
        _ => by_clap(first, arguments),
    }
}

pub(super) fn execute(action: Action) -> ExitCode {
    match action {
        Action::Run(options) => run::run(*options),
        Action::Command(command) => execute_command(&command),
        Action::Print(text) => {
            print_out(&text);
            ExitCode::from(OK)
        }
        Action::Refuse(text, status) => {
            print_err(&text);
            ExitCode::from(status)
        }
    }
}

fn execute_command(chosen: &CliCommand) -> ExitCode {
    match chosen {
        CliCommand::Status(args) => status::run(args),
        CliCommand::Top(args) => top::run(args),
        CliCommand::Doctor(args) => doctor::run(args),
        CliCommand::Trace(args) => trace::run(args),
        CliCommand::Ping(args) => ping::run(args),
        CliCommand::Capture(args) => capture::run(args),
        CliCommand::Report(args) => report::run(args),
        CliCommand::Lease(args) => lease::run(args),
        CliCommand::Config(args) => config::run(args),
        CliCommand::DockerOpts(args) => docker_opts::run(args),
        CliCommand::Down(args) => down::run(args),
        CliCommand::Demo(args) => demo::run(args),
        CliCommand::Bench(args) => bench::run(args),
        CliCommand::Man(args) => manuals::man(args, command()),
        CliCommand::Flags => manuals::flags(),
        CliCommand::Completions(args) => manuals::completions(args, command()),
    }
}

/// Whether the program was called by flannel's name: `flanneld`, or one like
/// `flanneld-amd64`, as flannel's releases name it.
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
        Ok(Invocation::ShortHelp) => Action::Print(help::run_help(program, false)),
        Ok(Invocation::LongHelp) => Action::Print(help::run_help(program, true)),
        Ok(Invocation::Version) => Action::Print(version_line()),
        Err(error) => Action::Refuse(refusal(program, &error), error.exit_code()),
    }
}

fn refusal(program: &str, error: &ArgsError) -> String {
    let hint = match error.exit_code() {
        USAGE => format!("For the flags, see '{program} --help'.\n"),
        _ => String::new(),
    };
    format!("{program}: {error}\n{hint}")
}

/// Shows the first flag's name only: what follows may be a password.
fn flag_without_command(argument: &str) -> String {
    let end = |character: char| character == '=' || character.is_ascii_whitespace();
    let name = argument
        .split(end)
        .next()
        .unwrap_or_default()
        .trim_start_matches('-');
    let flag = flags::dashed(&excerpt(name));
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
    let names = command.get_subcommands().map(Command::get_name);
    let hint = nearest(word, names.map(|name| (name, name)), 0.4)
        .map(|name| format!("; did you mean '{NAME} {name}'?"))
        .unwrap_or_default();
    let word = excerpt(word);
    format!("{NAME}: unknown command {word}{hint}\nFor the commands, see '{NAME} --help'.\n")
}

fn by_clap(first: OsString, rest: impl Iterator<Item = OsString>) -> Action {
    let mut command = command();
    command.build();
    if command.find_subcommand(&first).is_none() {
        return Action::Refuse(unknown_command(&command, &first.to_string_lossy()), USAGE);
    }
    let words = [OsString::from(NAME), first].into_iter().chain(rest);
    let matches = command.try_get_matches_from(words);
    match matches.and_then(|matches| CliCommand::from_arg_matches(&matches)) {
        Ok(command) => Action::Command(command),
        Err(error) if error.use_stderr() => Action::Refuse(error.render().to_string(), USAGE),
        Err(help) => Action::Print(help.render().to_string()),
    }
}

#[cfg(test)]
mod tests;
