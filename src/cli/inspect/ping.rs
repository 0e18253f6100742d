//! `uvxlan ping`: echo requests over the overlay to a peer or a container, small ones and
//! such that fill the MTU.

use std::io;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::status::{Socket, failed};
use crate::control::Status;
use crate::host::echo::{Answer, EchoSocket, HEADERS, SMALL};

/// How long to wait for a reply.
const PATIENCE: Duration = Duration::from_secs(1);

/// Arguments of `uvxlan ping`.
#[derive(clap::Args, Debug, Clone)]
pub struct PingArgs {
    /// A peer (its public IP or its subnet) or a container's IP
    #[arg(value_name = "PEER|IP", value_parser = target)]
    to: Target,
    /// Number of requests
    #[arg(short, long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// Seconds between two requests
    #[arg(short, long, value_name = "SECONDS", default_value_t = 0.5, value_parser = seconds)]
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
        "an IPv4 address, or a peer's subnet such as 10.5.24.0/24, is expected".to_owned()
    })?;
    Ok(Target::Subnet(subnet.trunc()))
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.01..=60.0).contains(&value) => Ok(value),
        _ => Err("0.01 to 60 seconds are possible".into()),
    }
}

/// Where requests go, and for a person whom that is.
#[derive(Debug, PartialEq, Eq)]
struct Aim {
    address: Ipv4Addr,
    text: String,
}

/// A peer is asked at the network address of its subnet, which its VTEP has on its device.
fn aim(target: Target, status: &Status) -> Aim {
    let by_subnet = |subnet: &Ipv4Net| status.peers.iter().find(|peer| peer.subnet == *subnet);
    let peer = match target {
        Target::Subnet(subnet) => by_subnet(&subnet),
        Target::Address(address) => status.peers.iter().find(|peer| peer.public_ip == address),
    };
    if let Some(peer) = peer {
        return Aim {
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
        None => "behind no peer that is known; see uvxlan trace".into(),
    };
    Aim { address, text }
}

/// Runs the command.
#[must_use]
pub fn run(args: &PingArgs) -> ExitCode {
    let status = match args.socket.status() {
        Ok(status) => status,
        Err(error) => return failed("ping", &error),
    };
    let Some(node) = &status.node else {
        crate::cli::print_err(&format!("uvxlan ping: not serving yet: {}\n", status.phase));
        return ExitCode::from(crate::cli::FAILURE);
    };
    let aim = aim(args.to, &status);
    match exchange(args, &aim, node.subnet.network(), node.mtu) {
        Ok(0) => ExitCode::from(crate::cli::FAILURE),
        Ok(_) => ExitCode::from(crate::cli::OK),
        Err(error) => {
            crate::cli::print_err(&format!(
                "uvxlan ping: cannot send echo requests: {error}; run as root, in the network \
                 namespace of the daemon\n"
            ));
            ExitCode::from(crate::cli::FAILURE)
        }
    }
}

/// Sends all requests; returns the number of replies.
fn exchange(args: &PingArgs, aim: &Aim, source: Ipv4Addr, mtu: u16) -> io::Result<usize> {
    let mut socket = EchoSocket::open(source)?;
    crate::cli::print_out(&format!("{} ({})\n", aim.address, aim.text));
    let mut times = Vec::new();
    for sequence in 0..args.count {
        // Every second one fills the MTU: small ones pass where large ones do not.
        let small = SMALL + HEADERS;
        let size = match sequence % 2 {
            0 => small,
            _ => usize::from(mtu).max(small),
        };
        let begin = Instant::now();
        let answer = socket.ask(aim.address, size, PATIENCE)?;
        if let Answer::Reply(time) = answer {
            times.push(time);
        }
        crate::cli::print_out(&line(size, answer));
        if sequence + 1 < args.count {
            let pause = Duration::from_secs_f64(args.interval);
            std::thread::sleep(pause.saturating_sub(begin.elapsed()));
        }
    }
    crate::cli::print_out(&summary(usize::from(args.count), &times));
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
        "{head}; round trip {:.3} / {mean:.3} / {:.3} ms (least, mean, most)\n",
        milliseconds(least),
        milliseconds(most)
    )
}

fn line(size: usize, answer: Answer) -> String {
    match answer {
        Answer::Reply(time) => format!(
            "{size:>5} bytes there and back in {:.3} ms\n",
            time.as_secs_f64() * 1e3
        ),
        Answer::Corrupted => format!("{size:>5} bytes: came back changed\n"),
        Answer::Error(_, 3, 4) => {
            format!("{size:>5} bytes: too long for the way (fragmentation needed)\n")
        }
        Answer::Error(from, kind, code) => {
            let meaning = match (kind, code) {
                (3, 0) => " (network unreachable)",
                (3, 1) => " (host unreachable)",
                (3, 9 | 10 | 13) => " (forbidden by a firewall)",
                (3, _) => " (unreachable)",
                (11, _) => " (TTL exceeded: a loop)",
                _ => "",
            };
            format!("{size:>5} bytes: {from} answers with ICMP type {kind}, code {code}{meaning}\n")
        }
        Answer::NotSent(number) => {
            let error = io::Error::from_raw_os_error(number);
            format!("{size:>5} bytes: not sent: {error}\n")
        }
        Answer::Nothing => format!(
            "{size:>5} bytes: no answer within {} s\n",
            PATIENCE.as_secs()
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
    fn a_peer_is_asked_at_its_device_whatever_it_is_called() {
        let at = |text: &str| aim(target(text).unwrap(), &status()).address.to_string();
        assert_eq!(at("192.0.2.2"), "10.5.24.0");
        assert_eq!(at("10.5.24.0/24"), "10.5.24.0");
        assert_eq!(at("10.5.24.7"), "10.5.24.7");
        let unknown = aim(target("10.5.99.1").unwrap(), &status());
        assert!(unknown.text.contains("no peer"), "{unknown:?}");
        assert!(target("host-b").is_err());
    }

    #[test]
    fn a_summary_counts_what_is_missing() {
        let times = [1, 3].map(Duration::from_millis);
        assert_eq!(
            summary(4, &times),
            "4 sent, 2 answered, 50 % lost; round trip 1.000 / 2.000 / 3.000 ms (least, mean, most)\n"
        );
        assert_eq!(summary(2, &[]), "2 sent, 0 answered, 100 % lost\n");
    }
}
