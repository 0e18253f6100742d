//! `uvxlan status`: shows what a running daemon reports.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use super::socket::{Socket, unanswered};
use super::terminal::{Paint, bytes, duration};
use crate::cli::{OK, print_json, print_out, try_print_out};
use crate::control::{LeaseState, PeerState, PeerStatus, Phase, Status};

const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Refused records to show; the rest is counted.
const REFUSED_SHOWN: usize = 20;

/// Arguments of `uvxlan status`.
#[derive(clap::Args, Debug)]
pub(crate) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Refresh every two seconds, also across restarts of the daemon
    #[arg(long, conflicts_with = "json")]
    watch: bool,
    #[command(flatten)]
    socket: Socket,
}

pub(crate) fn run(args: &StatusArgs) -> ExitCode {
    let paint = Paint::of_stdout();
    let status = match args.socket.status() {
        Ok(status) => status,
        Err(error) => return unanswered("status", &error),
    };
    if args.json {
        return print_json("status", &status);
    }
    let text = text(&status, paint);
    if args.watch {
        return watch(&args.socket, text, paint);
    }
    print_out(&text);
    ExitCode::from(OK)
}

/// Shows one status after the other until nobody reads any more. While the daemon does not
/// answer, perhaps because it is being restarted, the last status stays below the error.
fn watch(socket: &Socket, first: String, paint: Paint) -> ExitCode {
    // On a terminal: home and clear, so that the text is replaced in place.
    let (before, after) = match std::io::stdout().is_terminal() {
        true => ("\x1b[H\x1b[2J", ""),
        false => ("", "\n"),
    };
    let mut last = first;
    let mut error = String::new();
    loop {
        // A reader that has gone away has seen enough.
        if try_print_out(&format!("{before}{error}{last}{after}")).is_err() {
            return ExitCode::from(OK);
        }
        std::thread::sleep(WATCH_INTERVAL);
        error = match socket.status() {
            Ok(status) => {
                last = text(&status, paint);
                String::new()
            }
            Err(error) => format!(
                "{}\n\nretrying; the last status was:\n\n",
                paint.bad(&error.to_string())
            ),
        };
    }
}

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
        .map(|ago| format!(", last heard {} ago", duration(ago)))
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
        let text = format!("config, subnet and peers are from the offline cache, {age} old");
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
        let _ = writeln!(out, "  none: the datastore has no other lease");
        return;
    }
    let mut rows = vec![
        [
            "SUBNET",
            "PUBLIC IP",
            "STATE",
            "ROUTE",
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

/// Peer states that call for action.
const HINTS: &[(PeerState, &str)] = &[
    (
        PeerState::OneWay,
        "packets arrive from it, but it answers none of our probes: run uvxlan doctor on that node",
    ),
    (
        PeerState::Silent,
        "nothing arrives from it: run uvxlan doctor on that node and here",
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

/// Lost probes, with the direction if the peer reports it.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{CounterKind, CounterStatus, PeerRoute, ProbeMethod, RefusedRecord};

    #[test]
    fn the_text_names_peers_drops_and_refused_records() {
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
        assert!(plain.contains("silent: nothing arrives from it"), "{plain}");
        assert!(plain.contains("in_martian") && !plain.contains("in_short"));
        assert!(
            !plain.contains('\u{1b}'),
            "no escape sequence reaches the terminal"
        );
        assert!(text(&status, Paint(true)).contains("\u{1b}[31m"));
    }
}
