//! What the kernel's vxlan sends for an inner packet, compared with what we send.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use etherparse::{IpNumber, Ipv4Header, UdpHeader};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use uvxlan::sys::netns::Namespace;
use uvxlan::testbed::{Container, Host, Topology};
use uvxlan::wire::vxlan::{DEFAULT_PORT, ENCAP_LEN};

use super::frames::Outer;

use crate::support::inner::{self, Sample, of_flow, samples};
use crate::support::need;
use crate::support::wire::{
    End, KERNEL_MAC, Kind, MTU, OUR_MAC, UNDERLAY, finish_on_sending, kernel_subnet, our_subnet,
    possible,
};

/// `ETH_P_IP` in network order, as packet sockets take it.
const IPV4_FRAMES: i32 = 0x0800u16.to_be() as i32;

/// A sending host of either kind, and a capture on the other.
struct Bench {
    _topology: Topology,
    _end: End,
    container: Container,
    /// Keeps the port open, so that no ICMP errors return.
    _receiver: std::net::UdpSocket,
    capture: Socket,
    /// Whether checksums are complete when they reach the capture, or why not.
    finished: Result<(), String>,
}

impl Bench {
    fn new(kind: Kind) -> Self {
        let topology = Topology::two_hosts().unwrap();
        let (sender, receiver) = topology.pair().unwrap();
        let peer = (our_subnet(), receiver, OUR_MAC);
        let end = End::start(kind, sender, kernel_subnet(), KERNEL_MAC, peer);
        let container = sender
            .add_container(kernel_subnet(), u32::from(MTU))
            .unwrap();
        let finished = finish_on_sending(sender.node(), UNDERLAY);
        let (socket, capture) = sockets(receiver);
        Self {
            container,
            _receiver: socket,
            capture,
            finished,
            _end: end,
            _topology: topology,
        }
    }

    /// Sends inner packets from the container and returns what arrived for each.
    fn send(&self, packets: &[Vec<u8>]) -> Vec<Outer> {
        send_raw(self.container.namespace(), packets);
        let mut found: Vec<Option<Outer>> = vec![None; packets.len()];
        let deadline = Instant::now() + Duration::from_secs(5);
        while found.iter().any(Option::is_none) {
            assert!(Instant::now() < deadline, "missing: {:?}", missing(&found));
            let Some(outer) = self.next() else { continue };
            let id = inner::id_of(outer.inner());
            if let Some(at) = packets.iter().position(|packet| inner::id_of(packet) == id) {
                found[at] = Some(outer);
            }
        }
        found.into_iter().flatten().collect()
    }

    fn next(&self) -> Option<Outer> {
        let mut buffer = vec![0; 65_536];
        let length = std::io::Read::read(&mut &self.capture, &mut buffer).ok()?;
        buffer.truncate(length);
        Outer::of(buffer).filter(|outer| outer.udp.destination_port == DEFAULT_PORT)
    }
}

fn missing(found: &[Option<Outer>]) -> Vec<usize> {
    let numbered = found.iter().enumerate();
    numbered
        .filter(|(_, outer)| outer.is_none())
        .map(|(at, _)| at)
        .collect()
}

fn sockets(host: &Host) -> (std::net::UdpSocket, Socket) {
    host.namespace()
        .run(|| {
            let port = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT)).unwrap();
            let protocol = Some(Protocol::from(IPV4_FRAMES));
            let capture = Socket::new(Domain::PACKET, Type::DGRAM, protocol).unwrap();
            capture
                .set_read_timeout(Some(Duration::from_millis(100)))
                .unwrap();
            (port, capture)
        })
        .unwrap()
}

/// Sends packets unchanged; the kernel only fills in the header checksum.
fn send_raw(namespace: &Namespace, packets: &[Vec<u8>]) {
    const IPPROTO_RAW: i32 = 255;
    let send = || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(IPPROTO_RAW)));
        let socket = socket.unwrap();
        for packet in packets {
            let to = Ipv4Addr::from(*packet[16..].first_chunk::<4>().unwrap());
            let to = SockAddr::from(std::net::SocketAddrV4::new(to, 0));
            socket.send_to(packet, &to).unwrap();
        }
    };
    namespace.run(send).unwrap();
}

/// The container behind the tunnel, which need not exist.
fn destination() -> Ipv4Addr {
    our_subnet().hosts().nth(1).unwrap()
}

fn captured(kind: Kind) -> (Bench, Vec<Sample>, Vec<Outer>) {
    let bench = Bench::new(kind);
    let samples = samples(bench.container.address(), destination(), inner::TTL);
    let packets: Vec<_> = samples.iter().map(|sample| sample.bytes.clone()).collect();
    let outers = bench.send(&packets);
    (bench, samples, outers)
}

#[test]
fn our_frames_are_the_kernels_byte_by_byte() {
    need!(possible());
    let (kernel, samples, expected) = captured(Kind::Kernel);
    let (ours, _, actual) = captured(Kind::Ours);
    super::frames::write_golden(&samples, &expected, kernel.finished.is_ok());
    for ((sample, expected), actual) in samples.iter().zip(&expected).zip(&actual) {
        let name = sample.name;
        assert_eq!(
            actual.payload, expected.payload,
            "{name}: VXLAN and inner frame"
        );
        assert_eq!(
            actual.fixed(),
            expected.fixed(),
            "{name}: outer IPv4 and UDP headers"
        );
        assert_eq!(
            expected.payload.len(),
            ENCAP_LEN + sample.bytes.len(),
            "{name}"
        );
    }
    for (bench, outers) in [(kernel, expected), (ours, actual)] {
        match bench.finished {
            Ok(()) => outers.iter().for_each(assert_checksums),
            Err(reason) => eprintln!("outer checksums not compared: {reason}"),
        }
    }
}

fn assert_checksums(outer: &Outer) {
    let Outer {
        ip, udp, payload, ..
    } = outer;
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    assert_ne!(udp.checksum, 0, "over IPv4 zero means no checksum");
    assert_eq!(
        udp.calc_checksum_ipv4(ip, payload),
        Ok(udp.checksum),
        "{outer:?}"
    );
}

#[test]
fn the_outer_header_is_as_flannel_sets_it_up() {
    need!(possible());
    for kind in [Kind::Kernel, Kind::Ours] {
        let (_bench, samples, outers) = captured(kind);
        for (sample, outer) in samples.iter().zip(&outers) {
            let name = sample.name;
            let Ipv4Header { ecn, dscp, .. } = outer.ip;
            let inner_ecn = sample.bytes[1] & 3;
            let expected = if inner_ecn == 3 { 2 } else { inner_ecn };
            assert_eq!(
                (ecn.value(), dscp.value()),
                (expected, 0),
                "{kind:?} {name}"
            );
            assert!(!outer.ip.dont_fragment, "{kind:?} {name}");
            assert_eq!(outer.ip.time_to_live, 64, "{kind:?} {name}");
            assert_eq!(outer.ip.protocol, IpNumber::UDP);
        }
    }
}

#[test]
fn source_ports_are_ephemeral_stable_for_a_flow_and_differ_between_flows() {
    need!(possible());
    for kind in [Kind::Kernel, Kind::Ours] {
        let bench = Bench::new(kind);
        let range = bench._topology.hosts()[0]
            .namespace()
            .run(port_range)
            .unwrap();
        let packets: Vec<_> = (0..96u16)
            .map(|number| {
                let flow = 20_000 + number % 32;
                of_flow(
                    bench.container.address(),
                    destination(),
                    flow,
                    1 + number,
                    9,
                )
            })
            .collect();
        let outers = bench.send(&packets);
        let ports: Vec<u16> = outers.iter().map(|outer| outer.udp.source_port).collect();
        assert!(
            ports.iter().all(|port| range.contains(port)),
            "{kind:?}: {ports:?}"
        );
        let (first, rest) = ports.split_at(32);
        for again in rest.chunks(32) {
            assert_eq!(again, first, "{kind:?}: each flow keeps its port");
        }
        let mut distinct = first.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        assert!(distinct.len() >= 4, "{kind:?}: 32 flows on {distinct:?}");
    }
}

fn port_range() -> std::ops::RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let mut numbers = text.split_whitespace().map(|word| word.parse().unwrap());
    numbers.next().unwrap()..=numbers.next().unwrap()
}

/// Packets of one flow and length leave as one message that the kernel segments: each must still
/// be a frame of its own.
#[test]
fn a_burst_of_one_flow_arrives_as_single_frames() {
    need!(possible());
    let bench = Bench::new(Kind::Ours);
    need!(bench.finished.clone());
    let packets: Vec<_> = (0..60u16)
        .map(|number| {
            of_flow(
                bench.container.address(),
                destination(),
                20_000,
                1 + number,
                500,
            )
        })
        .collect();
    for (packet, outer) in packets.iter().zip(bench.send(&packets)) {
        assert_eq!(outer.inner().len(), packet.len());
        assert_eq!(outer.inner()[20..], packet[20..]);
        assert_checksums(&outer);
    }
}

/// Reading and writing a header must preserve it, or comparing it proves nothing.
#[test]
fn all_fields_but_four_are_fixed() {
    let mut ip = Ipv4Header::new(8, 64, IpNumber::UDP, [1; 4], [2; 4]).unwrap();
    let outer = |ip: Ipv4Header, source_port| {
        let udp = UdpHeader {
            source_port,
            destination_port: DEFAULT_PORT,
            length: 8,
            checksum: source_port,
        };
        Outer::of([ip.to_bytes().as_slice(), &udp.to_bytes()].concat()).unwrap()
    };
    let one = outer(ip.clone(), 1);
    ip.identification = 77;
    assert_eq!(outer(ip.clone(), 2).fixed(), one.fixed());
    ip.dont_fragment = !ip.dont_fragment;
    assert_ne!(outer(ip, 2).fixed(), one.fixed());
}
