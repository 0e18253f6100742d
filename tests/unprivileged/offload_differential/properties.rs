//! Properties over random flows.

use proptest::collection::vec;
use proptest::prelude::*;
use uvxlan::dataplane::checksum;
use uvxlan::offload::coalesce::Coalescer;
use uvxlan::offload::segment::SegmentPlan;
use uvxlan::wire::checksum::Checksummer;

use super::packet::{
    ACK, CWR, ECE, FIN, Head, PSH, RST, SYN, URG, check_with_etherparse, resegment, seal,
    seal_ipv4, split, vnet,
};
use super::{TUN_MTU, coalesce, coalesce_with, policy};

fn head() -> impl Strategy<Value = Head> {
    let ip = (
        any::<bool>(),
        any::<bool>(),
        1..4u8,
        any::<u8>(),
        1..255u8,
        any::<u16>(),
    );
    let tcp = (any::<u32>(), any::<u32>(), any::<u16>(), 0..=10usize);
    (ip, tcp, any::<bool>()).prop_map(|(ip, tcp, dont_fragment)| {
        let (v6, udp, flow, tos, ttl, id) = ip;
        let (seq, ack, window, options) = tcp;
        Head {
            flow,
            tos,
            ttl,
            id,
            ip_flags: if dont_fragment { 0x40 } else { 0 },
            seq,
            ack,
            window,
            options: (0..options * 4)
                .map(|i| (i as u8).wrapping_mul(3) ^ flow)
                .collect(),
            ..Head::new(v6, udp)
        }
    })
}

fn payload(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 1..200), vec(any::<u8>(), 1..most)]
}

/// The segments from the code under test.
fn segment(head: &Head, payload: &[u8], gso_size: usize, csum: Checksummer) -> Vec<Vec<u8>> {
    let packet = head.partial(payload);
    let plan = SegmentPlan::new(&vnet(head, gso_size), &packet).unwrap();
    let mut segments = Vec::new();
    for index in 0..plan.count() {
        let mut segment = vec![0xcc; plan.header_len() + 7];
        let range = plan.write_header(index, &mut segment, csum).unwrap();
        assert_eq!(
            segment.split_off(plan.header_len()),
            [0xcc; 7],
            "wrote past its header"
        );
        segment.extend(&packet[range]);
        segments.push(segment);
    }
    segments
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn segments_equal_those_of_the_model(
        mut head in head(),
        extra_flags in any::<u8>(),
        payload in payload(20_000),
        gso_size in prop_oneof![1..60usize, 200..1461usize],
    ) {
        head.flags = ACK | (extra_flags & (FIN | PSH | ECE | CWR | URG));
        let made = segment(&head, &payload, gso_size, checksum::checksummer());
        prop_assert_eq!(&made, &split(&head, &payload, gso_size));
        for packet in &made {
            prop_assert_eq!(check_with_etherparse(packet), Ok(()));
        }
    }

    #[test]
    fn coalescing_undoes_segmenting(
        mut head in head(),
        extra_flags in any::<u8>(),
        payload in payload(50_000),
        gso_size in 1..=64usize,
    ) {
        head.flags = ACK | (extra_flags & (PSH | ECE));
        // Sizes that give at most 64 segments, each within the MTU.
        let gso_size = payload.len().div_ceil(gso_size).min(TUN_MTU - head.len());
        let payload = &payload[..payload.len().min(gso_size * 64)];
        let segments = segment(&head, payload, gso_size, Checksummer::PORTABLE);
        let written = coalesce(policy(), &segments);
        prop_assert_eq!(written.len(), 1);
        prop_assert_eq!(written[0].packets, segments.len());
        if segments.len() == 1 {
            prop_assert_eq!(&written[0].bytes, &head.packet(payload));
        } else {
            prop_assert_eq!(&written[0].bytes, &head.partial(payload));
            prop_assert_eq!(written[0].vnet, vnet(&head, gso_size));
        }
    }

    #[test]
    fn flows_keep_their_packets_and_order(
        drains in vec(vec((0..12usize, step()), 1..120), 1..4),
        heads in vec(head(), 12),
    ) {
        let mut coalescer = Coalescer::new(policy());
        let mut flows: Vec<Flow> = heads.into_iter().enumerate().map(Flow::new).collect();
        for drain in drains {
            let mut packets = Vec::new();
            for (flow, step) in drain {
                let flow = &mut flows[flow];
                let packet = flow.next(&step);
                packets.push(packet);
            }
            let written = coalesce_with(&mut coalescer, &packets);
            let mut arrived = Vec::new();
            for write in &written {
                if write.packets == 1 {
                    arrived.push(write.bytes.clone());
                    continue;
                }
                prop_assert!(write.bytes.len() <= 65_535);
                let parts = resegment(&write.vnet, &write.bytes);
                prop_assert_eq!(parts.len(), write.packets);
                arrived.extend(parts);
            }
            for flow in 0..flows.len() {
                let of_flow = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
                    let mine = packets.iter().filter(|packet| flow_of(packet) == flow);
                    mine.map(|packet| comparable(packet)).collect()
                };
                prop_assert_eq!(of_flow(&arrived), of_flow(&packets));
            }
        }
    }
}

/// The form of the next packet of a flow.
#[derive(Clone, Debug)]
struct Step {
    kind: Kind,
    payload: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Full size, next in sequence.
    Full,
    /// Full size, next in sequence, but with the identification of the one before.
    SameId,
    Short,
    Flags(u8),
    Empty,
    Window,
    Options,
    Ttl,
    Damaged(usize),
    BadIpChecksum,
    Reordered(u32),
    IdJump,
    Partial,
    Fragment,
    Padded,
    NoUdpChecksum,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        30 => Just(Kind::Full),
        2 => Just(Kind::SameId),
        2 => Just(Kind::Short),
        2 => prop::sample::select(vec![PSH, FIN, SYN, RST, URG, ECE, CWR]).prop_map(Kind::Flags),
        1 => Just(Kind::Empty),
        1 => Just(Kind::Window),
        1 => Just(Kind::Options),
        1 => Just(Kind::Ttl),
        2 => (0..60usize).prop_map(Kind::Damaged),
        1 => Just(Kind::BadIpChecksum),
        1 => any::<u32>().prop_map(Kind::Reordered),
        1 => Just(Kind::IdJump),
        1 => Just(Kind::Fragment),
        1 => Just(Kind::Padded),
        1 => Just(Kind::NoUdpChecksum),
        1 => Just(Kind::Partial),
    ];
    (kind, vec(any::<u8>(), 60)).prop_map(|(kind, payload)| Step { kind, payload })
}

/// A sender, identified by its source address.
struct Flow {
    head: Head,
}

impl Flow {
    fn new((index, mut head): (usize, Head)) -> Self {
        head.flow = index as u8;
        Self { head }
    }

    fn next(&mut self, step: &Step) -> Vec<u8> {
        let mut head = self.head.clone();
        let mut payload = &step.payload[..];
        match &step.kind {
            Kind::SameId => head.id = head.id.wrapping_sub(1),
            Kind::Short => payload = &payload[..17],
            Kind::Flags(flag) => head.flags |= flag,
            Kind::Empty => payload = &[],
            Kind::Window => head.window ^= 0x0100,
            Kind::Options => {
                if let Some(last) = head.options.last_mut() {
                    *last ^= 1;
                }
            }
            Kind::Ttl => head.ttl ^= 3,
            Kind::Reordered(by) => head.seq = head.seq.wrapping_sub(*by),
            Kind::IdJump => head.id = head.id.wrapping_add(100),
            _ => {}
        }
        self.head.seq = head.seq.wrapping_add(payload.len() as u32);
        self.head.id = head.id.wrapping_add(1);
        self.head.window = head.window;
        self.head.ttl = head.ttl;
        self.head.options.clone_from(&head.options);
        let mut packet = head.packet(payload);
        match &step.kind {
            Kind::Damaged(at) => {
                let at = (head.ip_len() + 8 + at).min(packet.len() - 1);
                packet[at] ^= 0x10;
            }
            Kind::BadIpChecksum if !head.v6 => packet[10] ^= 1,
            Kind::Fragment if !head.v6 => {
                packet[7] = 5;
                seal_ipv4(&mut packet);
            }
            Kind::Partial => seal(&mut packet, false),
            Kind::Padded => packet.extend([0; 9]),
            Kind::NoUdpChecksum if head.udp => {
                packet[head.ip_len() + 6..head.ip_len() + 8].fill(0);
            }
            _ => {}
        }
        packet
    }
}

fn flow_of(packet: &[u8]) -> usize {
    usize::from(packet[if packet[0] >> 4 == 6 { 23 } else { 15 }])
}

/// The packet without what merging may change: bytes after its end, the identification if DF makes
/// it meaningless, and a checksum left to offload.
fn comparable(packet: &[u8]) -> Vec<u8> {
    let v6 = packet[0] >> 4 == 6;
    let field = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let mut packet = packet[..if v6 { 40 + field(4) } else { field(2) }].to_vec();
    let mut partial = packet.clone();
    seal(&mut partial, false);
    if partial == packet {
        seal(&mut packet, true);
    }
    if !v6 && packet[6] == 0x40 && check_with_etherparse(&packet).is_ok() {
        packet[4..6].fill(0);
        seal_ipv4(&mut packet);
    }
    packet
}
