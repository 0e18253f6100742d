//! Inner packets that a container may send, built by an independent library.

use std::net::Ipv4Addr;

use etherparse::{
    IpDscp, IpEcn, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, PacketBuilder,
    PacketBuilderStep, TcpOptionElement,
};

/// TTL of a container's packets.
pub(crate) const TTL: u8 = 64;
/// Identification of the first sample; the following ones count up, which identifies them.
pub(crate) const FIRST_ID: u16 = 1000;
/// Longest payload of ICMP or UDP that fits the overlay.
const LONGEST: usize = 1422;

/// A named packet.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// What is special about it; also a file name.
    pub(crate) name: &'static str,
    /// The packet from its IPv4 header on, with correct checksums.
    pub(crate) bytes: Vec<u8>,
}

impl Sample {
    /// The identification, to recognize it.
    pub(crate) fn id(&self) -> u16 {
        id_of(&self.bytes)
    }
}

/// The identification of an IPv4 packet; 0 for anything else.
pub(crate) fn id_of(packet: &[u8]) -> u16 {
    match packet {
        [_, _, _, _, high, low, ..] => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}

type Step = PacketBuilderStep<IpHeaders>;
type Change = fn(&mut Ipv4Header);
/// A name, a change of the IPv4 header, and the payload.
type Row = (&'static str, Change, fn(Step) -> Vec<u8>);

/// All samples from one container to another, with this TTL.
pub(crate) fn samples(from: Ipv4Addr, to: Ipv4Addr, ttl: u8) -> Vec<Sample> {
    let plain: Change = |_| {};
    let table: [Row; 24] = [
        ("icmp_0", plain, |ip| icmp(ip, 0)),
        ("icmp_1", plain, |ip| icmp(ip, 1)),
        ("icmp_56", plain, |ip| icmp(ip, 56)),
        ("icmp_1421", plain, |ip| icmp(ip, LONGEST - 1)),
        ("icmp_1422", plain, |ip| icmp(ip, LONGEST)),
        ("udp_0", plain, |ip| udp(ip, 0)),
        ("udp_11", plain, |ip| udp(ip, 11)),
        ("udp_1422", plain, |ip| udp(ip, LONGEST)),
        ("udp_without_checksum", plain, |ip| {
            let mut bytes = udp(ip, 12);
            bytes[26..28].fill(0);
            bytes
        }),
        ("tcp_syn", plain, syn),
        ("tcp_data", plain, |ip| tcp(ip, 100)),
        ("tcp_full", plain, |ip| tcp(ip, LONGEST - 12)),
        ("ect_1", |ip| ip.ecn = ecn(1), |ip| udp(ip, 5)),
        ("ect_0", |ip| ip.ecn = ecn(2), |ip| udp(ip, 5)),
        (
            "congestion_experienced",
            |ip| ip.ecn = ecn(3),
            |ip| udp(ip, 5),
        ),
        ("ect_0_tcp", |ip| ip.ecn = ecn(2), |ip| tcp(ip, 33)),
        ("expedited", |ip| ip.dscp = dscp(46), |ip| udp(ip, 5)),
        (
            "all_of_tos",
            |ip| {
                ip.dscp = dscp(63);
                ip.ecn = ecn(3);
            },
            |ip| icmp(ip, 5),
        ),
        (
            "dont_fragment",
            |ip| ip.dont_fragment = true,
            |ip| udp(ip, 5),
        ),
        (
            "dont_fragment_full",
            |ip| ip.dont_fragment = true,
            |ip| icmp(ip, LONGEST),
        ),
        (
            "first_fragment",
            |ip| ip.more_fragments = true,
            |ip| udp(ip, 80),
        ),
        (
            "later_fragment",
            |ip| ip.fragment_offset = IpFragOffset::try_new(11).unwrap(),
            |ip| other(ip, 17, 40),
        ),
        ("other_protocol", plain, |ip| other(ip, 132, 24)),
        ("options", |ip| ip.options = [1; 8].into(), |ip| udp(ip, 5)),
    ];
    let numbered = table.into_iter().zip(FIRST_ID..);
    let build = |((name, change, finish), id): (Row, u16)| {
        let bytes = finish(step(from, to, ttl, id, change));
        Sample { name, bytes }
    };
    numbered.map(build).collect()
}

/// A UDP packet of a flow, recognized by `id`.
pub(crate) fn of_flow(
    from: Ipv4Addr,
    to: Ipv4Addr,
    source_port: u16,
    id: u16,
    len: usize,
) -> Vec<u8> {
    let ip = step(from, to, TTL, id, |_| {});
    write(|bytes| ip.udp(source_port, 53).write(bytes, &payload(len)))
}

/// Starts a packet.
pub(crate) fn step(
    from: Ipv4Addr,
    to: Ipv4Addr,
    ttl: u8,
    id: u16,
    change: impl FnOnce(&mut Ipv4Header),
) -> Step {
    let (from, to) = (from.octets(), to.octets());
    let mut header = Ipv4Header::new(0, ttl, IpNumber(0), from, to).unwrap();
    header.identification = id;
    header.dont_fragment = false;
    change(&mut header);
    PacketBuilder::ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
}

fn ecn(value: u8) -> IpEcn {
    IpEcn::try_new(value).unwrap()
}

fn dscp(value: u8) -> IpDscp {
    IpDscp::try_new(value).unwrap()
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7) as u8).collect()
}

fn write<E: std::fmt::Debug>(build: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
    let mut bytes = Vec::new();
    build(&mut bytes).unwrap();
    bytes
}

fn icmp(ip: Step, len: usize) -> Vec<u8> {
    write(|bytes| ip.icmpv4_echo_request(7, 1).write(bytes, &payload(len)))
}

fn udp(ip: Step, len: usize) -> Vec<u8> {
    write(|bytes| ip.udp(40_000, 53).write(bytes, &payload(len)))
}

fn tcp(ip: Step, len: usize) -> Vec<u8> {
    let segment = ip.tcp(40_000, 80, 7, 1024).ack(9).psh();
    write(|bytes| segment.write(bytes, &payload(len)))
}

fn syn(ip: Step) -> Vec<u8> {
    let options = [
        TcpOptionElement::MaximumSegmentSize(1410),
        TcpOptionElement::SelectiveAcknowledgementPermitted,
        TcpOptionElement::Timestamp(12_345, 0),
        TcpOptionElement::Noop,
        TcpOptionElement::WindowScale(7),
    ];
    let segment = ip
        .tcp(40_000, 80, 7, 64_240)
        .syn()
        .options(&options)
        .unwrap();
    write(|bytes| segment.write(bytes, &[]))
}

fn other(ip: Step, protocol: u8, len: usize) -> Vec<u8> {
    write(|bytes| ip.write(bytes, IpNumber(protocol), &payload(len)))
}
