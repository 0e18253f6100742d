//! The help of `uvxlan run`, made from the table of flags.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command};

use super::flags::{FLAGS, Flag, Group, Kind, Source, VERSION};
use crate::cli::EXIT_STATUSES;

const ABOUT: &str = "Run the daemon: join the network and carry its packets";

const LONG_ABOUT: &str = "\
Run the daemon: join the network and carry its packets.

It takes flannel's flags and environment (FLANNELD_*). When the program is called as flanneld, it
is this command. Flags marked \"no effect yet\" are accepted with one warning.";

const SYNTAX: &str = "\
Syntax:
  One dash or two; the value follows = or is the next word. A switch stands alone or has its value
  behind = (true, false, 1, 0, t, f); the next word is never its value. The command line overrides
  the environment, which overrides the default; the log at start shows where each value came from.";

const EXAMPLES: &str = "\
Examples:
  Join the network whose config is in etcd, with TLS:
    uvxlan run --etcd-endpoints=https://10.0.0.1:2379,https://10.0.0.2:2379 \\
      --etcd-cafile=/etc/etcd/ca.pem --etcd-certfile=/etc/etcd/node.pem \\
      --etcd-keyfile=/etc/etcd/node-key.pem

  Choose the interface and the address to publish:
    uvxlan run --iface=eth1 --public-ip=192.0.2.10

  Without etcd, with leases in a directory that all nodes share:
    uvxlan run --store=dir:/mnt/shared/leases

  The same, set in the environment:
    FLANNELD_IFACE=eth1 UVXLAN_STORE=dir:/mnt/shared/leases uvxlan run

Files:
  /run/flannel/subnet.env       what docker and CNI plugins read (--subnet-file)
  /var/lib/uvxlan/state.json    subnet and MAC, for the next start (--state-dir)
  /var/lib/uvxlan/network.json  config and peers, for a start without the datastore (--state-dir)
  /run/uvxlan/control.sock      where uvxlan status and others ask (--control-socket)";

/// The command as clap knows it. Only help is made from it: [`flannel_args`] reads the values,
/// because Go's rules are not clap's.
///
/// [`flannel_args`]: super::flannel_args
pub(crate) fn run_command(name: &'static str) -> Command {
    Command::new(name)
        .about(ABOUT)
        .long_about(LONG_ABOUT)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args(FLAGS.iter().map(argument))
        .arg(
            Arg::new("help")
                .short('h')
                .long("help")
                .help("Print help: -h a summary, --help everything")
                .help_heading(Group::Daemon.heading())
                .action(ArgAction::SetTrue),
        )
        .after_help("For details, environment variables and examples, see --help.")
        .after_long_help(format!("{SYNTAX}\n\n{EXAMPLES}\n\n{}", exit_statuses()))
}

fn exit_statuses() -> String {
    let mut text = String::from("Exit status:");
    for (status, meaning) in EXIT_STATUSES {
        let _ = write!(text, "\n  {status:<2}  {meaning}");
    }
    text
}

/// The help text, `-h` or `--help`, without colours.
pub(crate) fn run_help(program: &'static str, long: bool) -> String {
    let mut command = run_command("run").bin_name(program).display_name(program);
    let help = if long {
        command.render_long_help()
    } else {
        command.render_help()
    };
    format!("{}\n", help.to_string().trim_end())
}

fn argument(flag: &'static Flag) -> Arg {
    plain_argument(flag)
        .help_heading(flag.group.heading())
        .help(summary(flag))
        .long_help(long_help(flag))
        .hide(flag.hidden)
}

/// How a flag is spelled and takes its value.
pub(crate) fn plain_argument(flag: &'static Flag) -> Arg {
    let mut letters = flag.name.chars();
    let argument = match (letters.next(), letters.next()) {
        (Some(letter), None) => Arg::new(flag.name).short(letter),
        _ => Arg::new(flag.name).long(flag.name),
    };
    match flag.kind {
        Kind::Switch => argument.action(ArgAction::SetTrue),
        Kind::Single => argument.action(ArgAction::Set).value_name(flag.value_name),
        Kind::Repeated => argument
            .action(ArgAction::Append)
            .value_name(flag.value_name),
    }
}

fn summary(flag: &Flag) -> String {
    let mut text = flag.headline();
    if !flag.default.is_empty() {
        let _ = write!(text, " [default: {}]", flag.default);
    }
    text
}

fn long_help(flag: &Flag) -> String {
    let mut lines = vec![summary(flag)];
    lines.extend((!flag.details.is_empty()).then(|| flag.details.to_owned()));
    let mut facts = Vec::new();
    if flag.name != VERSION {
        facts.push(format!("environment: {}", flag.variable(flag.name)));
    }
    if !flag.aliases.is_empty() {
        facts.push(format!("also spelled --{}", flag.aliases.join(", --")));
    }
    match flag.source {
        Source::Flannel => {}
        Source::NewerFlannel => facts.push("not in flannel v0.11.0".to_owned()),
        Source::Uvxlan => facts.push("not in flannel".to_owned()),
    }
    lines.extend((!facts.is_empty()).then(|| format!("[{}]", facts.join("; "))));
    lines.join("\n")
}
