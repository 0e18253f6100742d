//! The help of `uvxlan run`, made from the table of flags.

use clap::{Arg, ArgAction, Command};

use super::flags::{FLAGS, Flag, Kind, Known, VERSION};

const ABOUT: &str = "Run the daemon: join the network and carry its packets";

const LONG_ABOUT: &str = "\
Run the daemon: join the network and carry its packets.

Takes flannel's flags and environment (FLANNELD_*). Called as flanneld, the program is this
command. Flags marked \"no effect yet\" are accepted with one warning.";

const SYNTAX: &str = "\
Syntax:
  One dash or two, a value behind = or as the next word. A switch is given alone, or with its
  value behind = (true, false, 1, 0, t, f); the next word is never its value. Command line before
  environment before default; the log at start tells which it was.";

const EXAMPLES: &str = "\
Examples:
  Join the network whose config lies in etcd, with TLS:
    uvxlan run --etcd-endpoints=https://10.0.0.1:2379,https://10.0.0.2:2379 \\
      --etcd-cafile=/etc/etcd/ca.pem --etcd-certfile=/etc/etcd/node.pem \\
      --etcd-keyfile=/etc/etcd/node-key.pem

  Choose the interface, and tell the address that others see:
    uvxlan run --iface=eth1 --public-ip=192.0.2.10

  Without etcd, with leases in a directory that all nodes share:
    uvxlan run --store=dir:/mnt/shared/leases

  The same by environment:
    FLANNELD_IFACE=eth1 UVXLAN_STORE=dir:/mnt/shared/leases uvxlan run

Files:
  /run/flannel/subnet.env       what docker and CNI plugins read (--subnet-file)
  /var/lib/uvxlan/state.json    subnet and MAC, for the next start (--state-dir)
  /run/uvxlan/control.sock      where uvxlan status and others ask (--control-socket)

Exit status:
  0 stopped by a signal; 1 failure; 2 wrong usage; 69 datastore unreachable (--fail-fast);
  71 no TUN device; 73 a file cannot be written; 77 permission missing; 78 bad configuration,
  or our public IP or subnet is another host's";

/// The command as clap knows it. Only help is made from it: values are read by
/// [`flannel_args`](super::flannel_args), because Go's rules are not clap's.
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
                .help("Print help; -h is short, --help is long")
                .help_heading(super::flags::Group::Daemon.heading())
                .action(ArgAction::SetTrue),
        )
        .after_help("Values, environment and examples: --help")
        .after_long_help(format!("{SYNTAX}\n\n{EXAMPLES}"))
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
        .long_help(details(flag))
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
    let mut text = flag.summary.to_owned();
    if flag.effect == super::flags::Effect::NotYet {
        text.push_str("; no effect yet");
    }
    if !flag.default.is_empty() {
        text.push_str(&format!(" [default: {}]", flag.default));
    }
    text
}

fn details(flag: &Flag) -> String {
    let mut lines = vec![summary(flag)];
    lines.extend((!flag.details.is_empty()).then(|| flag.details.to_owned()));
    let spellings: Vec<&str> = flag.aliases.to_vec();
    let mut facts = Vec::new();
    if flag.name != VERSION {
        facts.push(format!("environment: {}", flag.variable(flag.name)));
    }
    if !spellings.is_empty() {
        facts.push(format!("also spelled --{}", spellings.join(", --")));
    }
    match flag.known {
        Known::BothFlannels => {}
        Known::NewestFlannel => facts.push("not in flannel v0.11.0".to_owned()),
        Known::Ours => facts.push("not in flannel".to_owned()),
    }
    lines.extend((!facts.is_empty()).then(|| format!("[{}]", facts.join("; "))));
    lines.join("\n")
}
