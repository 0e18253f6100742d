//! `uvxlan status`: what a running daemon says, for people.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::running;
use crate::control::client::{self, ClientError};
use crate::control::{LeaseState, PeerState, PeerStatus, Phase, Request, Response, Status};
use crate::daemon::options::DEFAULT_CONTROL_SOCKET;

/// Pause between two pictures of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Refused records that are shown; the rest is counted.
const REFUSED_SHOWN: usize = 20;

/// Where the daemon answers.
#[derive(clap::Args, Debug, Clone)]
pub struct Socket {
    /// The daemon's control socket [default: that of the daemon that runs here]
    #[arg(long, env = "UVXLAN_CONTROL_SOCKET", value_name = "PATH")]
    control_socket: Option<PathBuf>,
}

/// Arguments of `uvxlan status`.
#[derive(clap::Args, Debug, Clone)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show it again every two seconds, also when the daemon is restarted meanwhile
    #[arg(long, conflicts_with = "json")]
    watch: bool,
    #[command(flatten)]
    socket: Socket,
}

impl Socket {
    /// Where to ask.
    pub(crate) fn path(&self) -> &Path {
        if let Some(path) = &self.control_socket {
            return path;
        }
        match running::options() {
            Some(daemon) => &daemon.control_socket,
            None => Path::new(DEFAULT_CONTROL_SOCKET),
        }
    }

    /// Asks for the status.
    pub(crate) fn status(&self) -> Result<Status, ClientError> {
        match client::send(self.path(), Request::Status)? {
            Response::Status(status) => Ok(*status),
            _ => Err(unexpected()),
        }
    }
}

pub(crate) fn unexpected() -> ClientError {
    ClientError::Refused("the daemon answered something else than was asked".into())
}

/// Ends with a message, and the status for "unavailable".
pub(crate) fn failed(command: &str, error: &ClientError) -> ExitCode {
    crate::cli::print_err(&format!("uvxlan {command}: {error}\n"));
    ExitCode::from(crate::cli::UNAVAILABLE)
}

/// Runs `uvxlan status`.
#[must_use]
pub fn run(args: &StatusArgs) -> ExitCode {
    let paint = Paint::of_stdout();
    let status = match args.socket.status() {
        Ok(status) => status,
        Err(error) => return failed("status", &error),
    };
    if args.json {
        return json(&status);
    }
    let text = text(&status, paint);
    if args.watch {
        return watch(&args.socket, text, paint);
    }
    crate::cli::print_out(&text);
    ExitCode::from(crate::cli::OK)
}

/// Shows one picture after the other until nobody looks any more. A daemon that does not
/// answer, because it is restarted perhaps, is waited for under its last picture.
fn watch(socket: &Socket, first: String, paint: Paint) -> ExitCode {
    // Home and clear: the picture stays in place. Into a file or a pipe goes one after the other.
    let (before, after) = match std::io::stdout().is_terminal() {
        true => ("\x1b[H\x1b[2J", ""),
        false => ("", "\n"),
    };
    let mut last = first;
    let mut trouble = None;
    loop {
        let shown = match &trouble {
            None => format!("{before}{last}{after}"),
            Some(text) => format!("{before}{text}{after}"),
        };
        // Whoever read it has seen enough.
        if crate::cli::try_print_out(&shown).is_err() {
            return ExitCode::from(crate::cli::OK);
        }
        std::thread::sleep(WATCH_EVERY);
        trouble = match socket.status() {
            Ok(status) => {
                last = text(&status, paint);
                None
            }
            Err(error) => Some(format!(
                "{}\n\nasking again; before that it was:\n\n{last}",
                paint.bad(&error.to_string())
            )),
        };
    }
}

pub(crate) fn json<T: serde::Serialize + ?Sized>(value: &T) -> ExitCode {
    match serde_json::to_string_pretty(value) {
        Ok(text) => {
            crate::cli::print_out(&format!("{text}\n"));
            ExitCode::from(crate::cli::OK)
        }
        Err(error) => {
            crate::cli::print_err(&format!("uvxlan: writing JSON: {error}\n"));
            ExitCode::from(crate::cli::FAILURE)
        }
    }
}

/// Colours, where a person looks at a terminal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint(bool);

impl Paint {
    pub(crate) fn of_stdout() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    }

    /// No colours: for files.
    pub(crate) const fn never() -> Self {
        Self(false)
    }

    fn with(self, code: u8, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.with(32, text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.with(31, text)
    }

    pub(crate) fn doubtful(self, text: &str) -> String {
        self.with(33, text)
    }

    pub(crate) fn heading(self, text: &str) -> String {
        self.with(1, text)
    }
}

/// The whole picture.
fn text(status: &Status, paint: Paint) -> String {
    let mut out = String::new();
    let since = duration(status.uptime_seconds);
    let phase = match &status.node {
        Some(node) if status.phase == Phase::Serving => {
            paint.good(&format!("serving {}", node.subnet))
        }
        Some(_) => paint.bad(&status.phase.to_string()),
        None => paint.doubtful(&status.phase.to_string()),
    };
    let _ = writeln!(
        out,
        "uvxlan {}, {phase} (pid {}, up {since})\n",
        status.version, status.pid
    );
    summary(&mut out, status, paint);
    peers(&mut out, status, paint);
    drops(&mut out, status, paint);
    refused(&mut out, status, paint);
    out
}

fn summary(out: &mut String, status: &Status, paint: Paint) {
    if let Some(node) = &status.node {
        let _ = writeln!(out, "  subnet       {} of {}", node.subnet, node.network);
        let _ = writeln!(
            out,
            "  public IP    {} on {} (MTU {})",
            node.public_ip, node.interface, node.interface_mtu
        );
        let _ = writeln!(
            out,
            "  device       {}, MTU {}, VNI {}, UDP port {}, VTEP {}",
            node.device, node.mtu, node.vni, node.port, node.vtep_mac
        );
    }
    let store = &status.datastore;
    let lease = match (&store.lease, &store.detail) {
        (LeaseState::Held, _) => paint.good("lease held"),
        (LeaseState::Pending, _) => "no lease yet".into(),
        (state, Some(detail)) => paint.bad(&format!("lease {state}: {detail}")),
        (state, None) => paint.bad(&format!("lease {state}")),
    };
    let heard = store
        .heard_seconds_ago
        .map(|ago| format!(", heard {} ago", duration(ago)))
        .unwrap_or_default();
    let _ = writeln!(out, "  datastore    {}", store.place);
    let left = store.lease_ends_in_seconds;
    let left = left.map(|left| format!(" ({} left)", duration(left)));
    let _ = writeln!(
        out,
        "               {lease}{}{heard}",
        left.unwrap_or_default()
    );
    if let Some(age) = store.memory_seconds {
        let age = duration(age);
        let text = format!("config, subnet and peers are from memory, {age} old");
        let _ = writeln!(out, "               {}", paint.doubtful(&text));
    }
    if let Some(packets) = &status.packet_loop {
        let _ = writeln!(
            out,
            "  packet loop  {} workers, offloads {}, peer check {}",
            packets.workers, packets.offloads, packets.peer_check
        );
        for lacking in &packets.lacking {
            let _ = writeln!(
                out,
                "               {}",
                paint.doubtful(&format!("without {lacking}"))
            );
        }
    }
}

fn peers(out: &mut String, status: &Status, paint: Paint) {
    let count = status.peers.len();
    let _ = writeln!(out, "\n{}", paint.heading(&format!("PEERS ({count})")));
    if count == 0 {
        let _ = writeln!(out, "  none: no other lease is in the datastore");
        return;
    }
    let mut rows = vec![
        [
            "SUBNET",
            "PUBLIC IP",
            "STATE",
            "WAY",
            "RTT",
            "LOSS",
            "MTU",
            "SEEN",
            "SENT",
            "RECEIVED",
        ]
        .map(str::to_owned),
    ];
    rows.extend(status.peers.iter().map(row));
    let widths: [usize; 10] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    let states = status.peers.iter().map(|peer| Some(&peer.state));
    for (row, state) in rows.iter().zip([None].into_iter().chain(states)) {
        let mut line = String::from(" ");
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let padded = format!("{cell:width$}");
            let painted = match (state, column) {
                (None, _) => paint.heading(&padded),
                (Some(PeerState::Ok), 2) => paint.good(&padded),
                (Some(state), 2) if state.is_bad() => paint.bad(&padded),
                _ => padded,
            };
            let _ = write!(line, " {painted}");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    for (state, hint) in HINTS {
        if status.peers.iter().any(|peer| peer.state == *state) {
            let _ = writeln!(out, "  {}: {hint}", paint.bad(&state.to_string()));
        }
    }
}

/// States of peers that want something done.
const HINTS: &[(PeerState, &str)] = &[
    (
        PeerState::OneWay,
        "packets come from it, and none of ours is answered: uvxlan doctor, on that node",
    ),
    (
        PeerState::Silent,
        "nothing comes from it: uvxlan doctor, on that node and here",
    ),
];

fn row(peer: &PeerStatus) -> [String; 10] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    [
        peer.subnet.to_string(),
        peer.public_ip.to_string(),
        peer.state.to_string(),
        peer.route.to_string(),
        or_dash(peer.rtt_us.map(|us| format!("{:.2} ms", us as f64 / 1e3))),
        or_dash(loss(peer)),
        or_dash(peer.path_mtu.map(|mtu| mtu.to_string())),
        or_dash(
            peer.seen_seconds_ago
                .map(|ago| format!("{} ago", duration(ago))),
        ),
        format!("{} ({})", peer.out_packets, bytes(peer.out_bytes)),
        format!("{} ({})", peer.in_packets, bytes(peer.in_bytes)),
    ]
}

/// Lost probes, and on which way, where the peer says so.
fn loss(peer: &PeerStatus) -> Option<String> {
    let percent = peer.loss_percent?;
    let way = match (peer.loss_out_percent, peer.loss_in_percent) {
        (Some(1..), Some(1..)) => " both ways",
        (Some(1..), _) => " out",
        (_, Some(1..)) => " in",
        _ => "",
    };
    Some(format!("{percent} %{way}"))
}

fn drops(out: &mut String, status: &Status, paint: Paint) {
    let drops: Vec<_> = status
        .counters
        .iter()
        .filter(|counter| counter.has_drops())
        .collect();
    let _ = writeln!(out, "\n{}", paint.heading("DROPPED PACKETS"));
    if drops.is_empty() {
        let _ = writeln!(out, "  none");
    }
    for drop in drops {
        let _ = writeln!(out, "  {:<24} {}", drop.name, drop.value);
    }
}

fn refused(out: &mut String, status: &Status, paint: Paint) {
    if status.refused.is_empty() {
        return;
    }
    let count = status.refused.len();
    let _ = writeln!(
        out,
        "\n{}",
        paint.heading(&format!("REFUSED RECORDS ({count})"))
    );
    for record in status.refused.iter().take(REFUSED_SHOWN) {
        let name = record.name.escape_debug();
        let rival = record.rival.as_ref();
        let rival = rival.map(|rival| format!(" ({})", rival.escape_debug()));
        let _ = writeln!(
            out,
            "  {name}: {}{}",
            record.text,
            rival.unwrap_or_default()
        );
    }
    if count > REFUSED_SHOWN {
        let _ = writeln!(
            out,
            "  and {} more (--json shows all)",
            count - REFUSED_SHOWN
        );
    }
}

/// Seconds, in the unit that says enough: `45 s`, `12 min`, `3 h 5 min`, `8 d`.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=3599 => format!("{} min", seconds / 60),
        3600..=86_399 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Bytes with a decimal unit: `512 B`, `1.5 kB`, `3.0 GB`.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{CounterKind, CounterStatus, PeerRoute, ProbeMethod, RefusedRecord};

    #[test]
    fn figures_have_units_that_say_enough() {
        assert_eq!(
            [45, 720, 11_100, 700_000].map(duration),
            ["45 s", "12 min", "3 h 5 min", "8 d"]
        );
        assert_eq!(
            [512, 1500, 3_000_000_000].map(bytes),
            ["512 B", "1.5 kB", "3.0 GB"]
        );
    }

    #[test]
    fn a_picture_names_peers_drops_and_refused_records() {
        let peer = PeerStatus {
            subnet: "10.5.24.0/24".parse().unwrap(),
            public_ip: "192.0.2.2".parse().unwrap(),
            vtep_mac: "0e:11:22:33:44:55".into(),
            route: PeerRoute::Tunnel,
            state: PeerState::Silent,
            probe: Some(ProbeMethod::InBand),
            rtt_us: Some(310),
            loss_percent: Some(5),
            loss_out_percent: Some(5),
            loss_in_percent: None,
            path_mtu: None,
            seen_seconds_ago: Some(3),
            out_packets: 12,
            out_bytes: 3456,
            in_packets: 0,
            in_bytes: 0,
        };
        let status = Status {
            phase: Phase::Serving,
            peers: vec![peer],
            counters: vec![
                CounterStatus {
                    name: "in_martian".into(),
                    kind: CounterKind::DropIn,
                    value: 4,
                },
                CounterStatus {
                    name: "in_short".into(),
                    kind: CounterKind::DropIn,
                    value: 0,
                },
            ],
            refused: vec![RefusedRecord {
                name: "x\u{1b}[31m".into(),
                reason: "key".into(),
                text: "no key".into(),
                rival: None,
            }],
            ..Status::default()
        };
        let plain = text(&status, Paint(false));
        for expected in [
            "10.5.24.0/24",
            "0.31 ms",
            "5 % out",
            "silent",
            "12 (3.5 kB)",
            "3 s ago",
        ] {
            assert!(plain.contains(expected), "{expected}:\n{plain}");
        }
        assert!(plain.contains("silent: nothing comes from it"), "{plain}");
        assert!(plain.contains("in_martian") && !plain.contains("in_short"));
        assert!(!plain.contains('\u{1b}'), "names cannot paint the terminal");
        assert!(text(&status, Paint(true)).contains("\u{1b}[31m"));
    }
}
