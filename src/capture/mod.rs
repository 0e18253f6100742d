//! Captures in a format that Wireshark reads. Pure: turns captured packets into the bytes of a
//! pcapng stream.
#![forbid(unsafe_code)]

pub mod pcapng;

use std::net::{Ipv4Addr, SocketAddrV4};

use self::pcapng::{Interface, PacketBlock};
use crate::dataplane::tap::{CapturedPacket, Direction, ObservationPoint};
use crate::wire::checksum::Sum;
use crate::wire::ipv4::PROTOCOL_UDP;

/// `LINKTYPE_RAW`: packets begin with their IP header.
const LINKTYPE_RAW: u16 = 101;
/// Outer IPv4 and UDP header.
const HEADERS_LEN: usize = 28;
/// TTL of outer packets, as the kernel's default.
const TTL: u8 = 64;

/// Names that a capture shows to its reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The program and its version.
    pub program: String,
    /// The overlay device.
    pub device: String,
    /// The underlay interface.
    pub interface: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// Encodes captured packets.
#[derive(Debug)]
pub struct Encoder {
    names: Names,
    inner: Option<u32>,
    outer: Option<u32>,
    /// Packets by interface.
    packets: [u64; 2],
}

impl Encoder {
    /// Encodes these views; at least one is needed.
    #[must_use]
    pub fn new(names: Names, inner: bool, outer: bool) -> Self {
        Self {
            names,
            outer: outer.then_some(0),
            inner: inner.then_some(u32::from(outer)),
            packets: [0; 2],
        }
    }

    /// Writes the head of the stream.
    pub fn begin(&self, out: &mut Vec<u8>) {
        pcapng::section_header(out, &self.names.program);
        let mut interface = |name: &str, description| {
            let interface = Interface {
                name,
                description,
                link_type: LINKTYPE_RAW,
            };
            pcapng::interface(out, &interface);
        };
        if self.outer.is_some() {
            interface(
                &self.names.interface,
                "VXLAN frames at the daemon's socket; the IPv4 and UDP headers are reconstructed \
                 from the socket's addresses",
            );
        }
        if self.inner.is_some() {
            interface(
                &self.names.device,
                "packets at the overlay device; outgoing ones may be super-packets that are \
                 segmented later",
            );
        }
    }

    /// Writes a packet, unless its view is not in the stream.
    pub fn packet(&mut self, out: &mut Vec<u8>, captured: &CapturedPacket) {
        let (interface, headers) = match captured.point {
            ObservationPoint::Inner => (self.inner, None),
            ObservationPoint::Outer { remote, port, tos } => {
                let own = SocketAddrV4::new(self.names.address, port);
                let (from, to) = match captured.direction {
                    Direction::In => (remote, own),
                    Direction::Out => (own, remote),
                };
                (self.outer, Some(outer_headers(from, to, tos, captured.len)))
            }
        };
        let Some(interface) = interface else { return };
        if let Some(packets) = self.packets.get_mut(interface as usize) {
            *packets += 1;
        }
        let headers: &[u8] = headers.as_ref().map_or(&[], |headers| &headers[..]);
        let comment = captured
            .dropped
            .map(|reason| format!("dropped: {}: {}", reason.label(), reason.meaning()));
        pcapng::packet(
            out,
            &PacketBlock {
                interface,
                nanoseconds: captured.nanoseconds,
                pieces: [headers, &captured.bytes],
                len: headers.len() + captured.len,
                inbound: captured.direction == Direction::In,
                comment: comment.as_deref(),
            },
        );
    }

    /// Writes the end of the stream: the number of packets in it, and of those that were missed.
    pub fn end(&self, out: &mut Vec<u8>, nanoseconds: u64, missed: u64) {
        let interfaces = self.outer.into_iter().chain(self.inner);
        for interface in interfaces {
            let written = self.packets.get(interface as usize).copied().unwrap_or(0);
            // Their interface is unknown: the first has them all.
            let missed = if interface == 0 { missed } else { 0 };
            pcapng::statistics(out, interface, nanoseconds, [written + missed, missed]);
        }
    }
}

/// IPv4 and UDP header of a datagram with `len` bytes of payload, without UDP checksum.
fn outer_headers(from: SocketAddrV4, to: SocketAddrV4, tos: u8, len: usize) -> [u8; HEADERS_LEN] {
    let total = u16::try_from(len + HEADERS_LEN).unwrap_or(u16::MAX);
    let mut headers = [0; HEADERS_LEN];
    let (ip, udp) = headers.split_at_mut(20);
    ip[0] = 0x45;
    ip[1] = tos;
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    ip[8] = TTL;
    ip[9] = PROTOCOL_UDP;
    ip[12..16].copy_from_slice(&from.ip().octets());
    ip[16..20].copy_from_slice(&to.ip().octets());
    let checksum = Sum::of(ip).finish();
    ip[10..12].copy_from_slice(&checksum);
    udp[0..2].copy_from_slice(&from.port().to_be_bytes());
    udp[2..4].copy_from_slice(&to.port().to_be_bytes());
    udp[4..6].copy_from_slice(&(total - 20).to_be_bytes());
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::counters::Counter;

    fn names() -> Names {
        Names {
            program: "uvxlan".into(),
            device: "flannel.1".into(),
            interface: "eth0".into(),
            address: Ipv4Addr::new(192, 0, 2, 1),
        }
    }

    #[test]
    fn another_parser_reads_the_outer_headers() {
        let from = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 50_000);
        let to = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 8472);
        let mut packet = outer_headers(from, to, 2, 3).to_vec();
        packet.extend([7, 8, 9]);
        let parsed = etherparse::SlicedPacket::from_ip(&packet).unwrap();
        let Some(etherparse::NetSlice::Ipv4(ip)) = parsed.net else {
            panic!("no IPv4")
        };
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(header.ecn.value(), 2);
        let Some(etherparse::TransportSlice::Udp(udp)) = parsed.transport else {
            panic!("no UDP")
        };
        assert_eq!((udp.source_port(), udp.destination_port()), (50_000, 8472));
        assert_eq!(udp.payload(), [7, 8, 9]);
    }

    #[test]
    fn unwanted_views_are_left_out_and_statistics_add_up() {
        let mut encoder = Encoder::new(names(), true, false);
        let mut stream = Vec::new();
        encoder.begin(&mut stream);
        let mut captured = CapturedPacket {
            nanoseconds: 1,
            point: ObservationPoint::Inner,
            direction: Direction::Out,
            bytes: vec![1, 2, 3],
            len: 9,
            dropped: Some(Counter::OutNoRoute),
        };
        encoder.packet(&mut stream, &captured);
        captured.point = ObservationPoint::Outer {
            remote: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1),
            port: 1,
            tos: 0,
        };
        let before = stream.len();
        encoder.packet(&mut stream, &captured);
        assert_eq!(stream.len(), before);
        encoder.end(&mut stream, 2, 5);
        assert_eq!(pcapng::totals(&stream), Some((6, 5)));
        let text = String::from_utf8_lossy(&stream);
        assert!(text.contains("dropped: out_no_route: No lease covers the destination."));
        assert!(text.contains("flannel.1") && !text.contains("eth0"));
    }
}
