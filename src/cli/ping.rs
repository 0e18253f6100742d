//! `uvxlan ping`: echo requests over the overlay to a peer or a container, small ones and
//! such that fill the MTU.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use super::status::{Socket, failed};
use crate::control::Status;
use crate::wire::echo::{self, Received, Verdict};

/// Payload of a small request, in bytes, as ping's.
const SMALL: usize = 56;
/// IPv4 and ICMP headers.
const HEADERS: usize = 20 + echo::HEADER_LEN;
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
        super::print_err(&format!("uvxlan ping: not serving yet: {}\n", status.phase));
        return ExitCode::from(super::FAILURE);
    };
    let aim = aim(args.to, &status);
    match exchange(args, &aim, node.subnet.network(), node.mtu) {
        Ok(0) => ExitCode::from(super::FAILURE),
        Ok(_) => ExitCode::from(super::OK),
        Err(error) => {
            super::print_err(&format!(
                "uvxlan ping: cannot send echo requests: {error}; run as root, in the network \
                 namespace of the daemon\n"
            ));
            ExitCode::from(super::FAILURE)
        }
    }
}

/// Sends all requests; returns the number of replies.
fn exchange(args: &PingArgs, aim: &Aim, source: Ipv4Addr, mtu: u16) -> io::Result<usize> {
    let socket = RawSocket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.bind(&SocketAddrV4::new(source, 0).into())?;
    super::print_out(&format!("{} ({})\n", aim.address, aim.text));
    let identifier: u16 = rand::random();
    let mut times = Vec::new();
    for sequence in 0..args.count {
        // Every second one fills the MTU: small ones pass where large ones do not.
        let length = match sequence % 2 {
            0 => SMALL,
            _ => usize::from(mtu).saturating_sub(HEADERS).max(SMALL),
        };
        let begin = Instant::now();
        let answer = ask(&socket, identifier, sequence, length, aim.address)?;
        let size = length + HEADERS;
        super::print_out(&match answer {
            Some(Ok(time)) => {
                times.push(time);
                format!(
                    "{size:>5} bytes there and back in {:.3} ms\n",
                    time.as_secs_f64() * 1e3
                )
            }
            Some(Err(text)) => format!("{size:>5} bytes: {text}\n"),
            None => format!(
                "{size:>5} bytes: no answer within {} s\n",
                PATIENCE.as_secs()
            ),
        });
        if sequence + 1 < args.count {
            let pause = Duration::from_secs_f64(args.interval);
            std::thread::sleep(pause.saturating_sub(begin.elapsed()));
        }
    }
    super::print_out(&summary(usize::from(args.count), &times));
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

/// One request; the time to its reply, or what else came back, or nothing.
fn ask(
    socket: &RawSocket,
    identifier: u16,
    sequence: u16,
    length: usize,
    to: Ipv4Addr,
) -> io::Result<Option<Result<Duration, String>>> {
    let payload: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
    let start = Instant::now();
    let request = echo::request(identifier, sequence, &payload);
    if let Err(error) = socket.send_to(&request, &SocketAddrV4::new(to, 0).into()) {
        return Ok(Some(Err(format!("not sent: {error}"))));
    }
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let left = PATIENCE.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        let mut reader = socket;
        let length = match reader.read(&mut buffer) {
            Ok(length) => length,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Ok(None),
                io::ErrorKind::Interrupted => continue,
                _ => return Ok(Some(Err(error.to_string()))),
            },
        };
        let Some(message) = buffer.get(..length).and_then(Received::parse) else {
            continue;
        };
        match message.verdict(identifier, sequence, &payload) {
            Verdict::Reply => return Ok(Some(Ok(start.elapsed()))),
            Verdict::Corrupted => return Ok(Some(Err("came back changed".into()))),
            Verdict::Error(3, 4) => {
                return Ok(Some(Err(
                    "too long for the way (fragmentation needed)".into()
                )));
            }
            Verdict::Error(kind, code) => {
                let from = Ipv4Addr::from(message.source);
                let text = format!("{from} answers with ICMP type {kind}, code {code}");
                return Ok(Some(Err(text)));
            }
            Verdict::NotOurs => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::PeerStatus;

    fn status() -> Status {
        let peer = PeerStatus {
            subnet: "10.5.24.0/24".parse().unwrap(),
            public_ip: "192.0.2.2".parse().unwrap(),
            vtep_mac: String::new(),
            way: "tunnel".into(),
            state: "ok".into(),
            rtt_us: None,
            loss_percent: None,
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
