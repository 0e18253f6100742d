//! `uvxlan ping`: echo requests over the overlay to a peer or a container, alternately small and
//! filling the MTU.

use std::io;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::socket::{Socket, unanswered};
use crate::cli::{FAILURE, OK, fail, print_out, seconds};
use crate::control::Status;
use crate::host::echo::{EchoResult, EchoSocket, HEADERS, SMALL};

const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// Arguments of `uvxlan ping`.
#[derive(clap::Args, Debug)]
pub(crate) struct PingArgs {
    /// Peer (its public IP or its subnet) or IP of a container
    #[arg(value_name = "PEER|IP", value_parser = target)]
    to: Target,
    /// Number of requests
    #[arg(short, long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// Seconds between two requests
    #[arg(short, long, value_name = "SECONDS", default_value_t = 0.5, value_parser = seconds(0.01..=60.0))]
    interval: f64,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Address(Ipv4Addr),
    Subnet(Ipv4Net),
}

fn target(text: &str) -> Result<Target, String> {
    if let Ok(address) = text.parse() {
        return Ok(Target::Address(address));
    }
    let subnet = text.parse::<Ipv4Net>().map_err(|_| {
        "expected an IPv4 address, or a peer's subnet such as 10.5.24.0/24".to_owned()
    })?;
    Ok(Target::Subnet(subnet.trunc()))
}

/// Where requests go, and a description of it.
#[derive(Debug, PartialEq, Eq)]
struct Destination {
    address: Ipv4Addr,
    text: String,
}

/// Finds the address to send to. A peer is reached at the network address of its subnet, which
/// its VTEP has on its device.
fn destination(target: Target, status: &Status) -> Destination {
    let by_subnet = |subnet: &Ipv4Net| status.peers.iter().find(|peer| peer.subnet == *subnet);
    let peer = match target {
        Target::Subnet(subnet) => by_subnet(&subnet),
        Target::Address(address) => status.peers.iter().find(|peer| peer.public_ip == address),
    };
    if let Some(peer) = peer {
        return Destination {
            address: peer.subnet.network(),
            text: format!("peer {}, {}", peer.public_ip, peer.subnet),
        };
    }
    let address = match target {
        Target::Address(address) => address,
        Target::Subnet(subnet) => subnet.network(),
    };
    let holder = status
        .peers
        .iter()
        .find(|peer| peer.subnet.contains(&address));
    let text = match holder {
        Some(peer) => format!("behind peer {}, {}", peer.public_ip, peer.subnet),
        None => format!("behind no known peer; see uvxlan trace {address}"),
    };
    Destination { address, text }
}

pub(crate) fn run(args: &PingArgs) -> ExitCode {
    let status = match args.socket.status() {
        Ok(status) => status,
        Err(error) => return unanswered("ping", &error),
    };
    let Some(node) = &status.node else {
        let error = format_args!("the daemon serves no subnet yet: {}", status.phase);
        return fail("ping", FAILURE, error);
    };
    let destination = destination(args.to, &status);
    match exchange(args, &destination, node.subnet.network(), node.mtu) {
        Ok(0) => ExitCode::from(FAILURE),
        Ok(_) => ExitCode::from(OK),
        Err(error) => fail(
            "ping",
            FAILURE,
            format_args!(
                "cannot send echo requests: {error}; run as root, in the network namespace of the \
                 daemon"
            ),
        ),
    }
}

/// Sends all requests; returns the number of replies.
fn exchange(
    args: &PingArgs,
    destination: &Destination,
    source: Ipv4Addr,
    mtu: u16,
) -> io::Result<usize> {
    let mut socket = EchoSocket::open(source)?;
    let Destination { address, text } = destination;
    print_out(&format!("{address} ({text})\n"));
    let mut times = Vec::new();
    for sequence in 0..args.count {
        // Every second one fills the MTU, because small ones may pass where large ones do not.
        let small = SMALL + HEADERS;
        let size = match sequence % 2 {
            0 => small,
            _ => usize::from(mtu).max(small),
        };
        let begin = Instant::now();
        let result = socket.ping(*address, size, REPLY_TIMEOUT)?;
        if let EchoResult::Reply { round_trip, .. } = result {
            times.push(round_trip);
        }
        print_out(&line(size, result));
        if sequence + 1 < args.count {
            let pause = Duration::from_secs_f64(args.interval);
            std::thread::sleep(pause.saturating_sub(begin.elapsed()));
        }
    }
    print_out(&summary(usize::from(args.count), &times));
    Ok(times.len())
}

fn summary(sent: usize, times: &[Duration]) -> String {
    let lost = (sent - times.len()) * 100 / sent.max(1);
    let head = format!("{sent} sent, {} answered, {lost} % lost", times.len());
    let (Some(least), Some(most)) = (times.iter().min(), times.iter().max()) else {
        return format!("{head}\n");
    };
    let milliseconds = |time: &Duration| time.as_secs_f64() * 1e3;
    let mean = times.iter().map(milliseconds).sum::<f64>() / times.len() as f64;
    format!(
        "{head}; round trip min/mean/max {:.3} / {mean:.3} / {:.3} ms\n",
        milliseconds(least),
        milliseconds(most)
    )
}

fn line(size: usize, result: EchoResult) -> String {
    match result {
        EchoResult::Reply { round_trip, .. } => format!(
            "{size:>5} bytes: reply in {:.3} ms\n",
            round_trip.as_secs_f64() * 1e3
        ),
        EchoResult::Corrupted => format!("{size:>5} bytes: reply with a different payload\n"),
        EchoResult::Error {
            kind: 3, code: 4, ..
        } => {
            format!("{size:>5} bytes: too large for the path (fragmentation needed)\n")
        }
        EchoResult::Error { from, kind, code } => {
            let meaning = match (kind, code) {
                (3, 0) => " (network unreachable)",
                (3, 1) => " (host unreachable)",
                (3, 9 | 10 | 13) => " (prohibited by a firewall)",
                (3, _) => " (unreachable)",
                (11, _) => " (TTL exceeded: a routing loop)",
                _ => "",
            };
            format!("{size:>5} bytes: {from} replied with ICMP type {kind}, code {code}{meaning}\n")
        }
        EchoResult::NotSent(number) => {
            let error = io::Error::from_raw_os_error(number);
            format!("{size:>5} bytes: not sent: {error}\n")
        }
        EchoResult::TimedOut => format!(
            "{size:>5} bytes: no reply within {} s\n",
            REPLY_TIMEOUT.as_secs()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{PeerRoute, PeerState, PeerStatus, ProbeMethod};

    fn status() -> Status {
        let peer = PeerStatus {
            subnet: "10.5.24.0/24".parse().unwrap(),
            public_ip: "192.0.2.2".parse().unwrap(),
            vtep_mac: String::new(),
            route: PeerRoute::Tunnel,
            state: PeerState::Ok,
            probe: Some(ProbeMethod::InBand),
            rtt_us: None,
            loss_percent: None,
            loss_out_percent: None,
            loss_in_percent: None,
            path_mtu: None,
            seen_seconds_ago: None,
            out_packets: 0,
            out_bytes: 0,
            in_packets: 0,
            in_bytes: 0,
        };
        Status {
            peers: vec![peer],
            ..Status::default()
        }
    }

    #[test]
    fn a_peer_is_reached_at_its_device_by_either_name() {
        let at = |text: &str| {
            destination(target(text).unwrap(), &status())
                .address
                .to_string()
        };
        assert_eq!(at("192.0.2.2"), "10.5.24.0");
        assert_eq!(at("10.5.24.0/24"), "10.5.24.0");
        assert_eq!(at("10.5.24.7"), "10.5.24.7");
        let unknown = destination(target("10.5.99.1").unwrap(), &status());
        assert!(unknown.text.contains("no known peer"), "{unknown:?}");
        assert!(target("host-b").is_err());
    }

    #[test]
    fn the_summary_counts_lost_requests() {
        let times = [1, 3].map(Duration::from_millis);
        assert_eq!(
            summary(4, &times),
            "4 sent, 2 answered, 50 % lost; round trip min/mean/max 1.000 / 2.000 / 3.000 ms\n"
        );
        assert_eq!(summary(2, &[]), "2 sent, 0 answered, 100 % lost\n");
    }
}
