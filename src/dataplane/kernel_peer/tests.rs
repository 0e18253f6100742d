use super::*;
use crate::wire::{MacAddr, Vni, vxlan::EncapTemplate};
use etherparse::PacketBuilder;
use proptest::prelude::*;

const MTU: u16 = 1450;

fn tcp(payload: &[u8], options: usize, flags_cwr: bool) -> Vec<u8> {
    let builder = PacketBuilder::ipv4([10, 3, 5, 2], [10, 3, 6, 2], 63)
        .tcp(40_000, 80, 7, 1024)
        .ack(9)
        .options_raw(&vec![1; options * 4])
        .unwrap();
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    if flags_cwr {
        // The checksum that is wrong now is replaced by every user.
        bytes[20 + TCP_FLAGS] |= TCP_CWR;
    }
    bytes
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ipv4([10, 3, 5, 2], [10, 3, 6, 2], 63)
        .udp(40_000, 53)
        .write(&mut bytes, payload)
        .unwrap();
    bytes
}

/// RFC 793's pseudo header as it is written, summed word by word.
fn pseudo_sum(packet: &[u8]) -> [u8; 2] {
    let mut words = packet[12..20].to_vec();
    words.extend([0, packet[9]]);
    words.extend(u16::try_from(packet.len() - 20).unwrap().to_be_bytes());
    let mut sum: u32 = words
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap().to_be_bytes()
}

fn checksum_at(packet: &[u8]) -> usize {
    20 + if packet[9] == PROTOCOL_TCP { 16 } else { 6 }
}

/// As a kernel leaves it with `CHECKSUM_PARTIAL`.
fn partial(mut packet: Vec<u8>) -> Vec<u8> {
    let at = checksum_at(&packet);
    let seed = pseudo_sum(&packet);
    packet[at..at + 2].copy_from_slice(&seed);
    packet
}

fn examined(packet: &[u8], segment: Option<usize>) -> Option<Unfinished> {
    examine(&Packet::new_checked(packet).unwrap(), MTU, segment)
}

#[test]
fn complete_packets_stay_as_they_are() {
    for packet in [tcp(b"hello", 3, false), udp(b"hello")] {
        assert_eq!(examined(&packet, None), None);
    }
    let mut without = udp(b"hello");
    without[26..28].fill(0);
    assert_eq!(examined(&without, None), None, "UDP without a checksum");
}

#[test]
fn a_partial_checksum_is_left_to_the_kernel() {
    for (packet, csum_offset) in [(tcp(b"hello", 3, false), 16), (udp(b"hello"), 6)] {
        let unfinished = examined(&partial(packet), None).unwrap();
        let expected = VnetHdr {
            flags: vnet_hdr::F_NEEDS_CSUM,
            csum_start: 20,
            csum_offset,
            ..VnetHdr::default()
        };
        assert_eq!(unfinished.hdr, expected);
        assert_eq!(unfinished.segments, 1);
        assert!(!unfinished.is_super_packet());
    }
}

#[test]
fn a_long_tcp_packet_is_cut_to_the_mtu() {
    for (options, cwr, gso_type) in [
        (0, false, vnet_hdr::GSO_TCPV4),
        (3, false, vnet_hdr::GSO_TCPV4),
        (10, true, vnet_hdr::GSO_TCPV4 | vnet_hdr::GSO_ECN),
    ] {
        let packet = partial(tcp(&[7; 60_000], options, cwr));
        let unfinished = examined(&packet, None).unwrap();
        let headers = 40 + options as u16 * 4;
        let expected = VnetHdr {
            flags: vnet_hdr::F_NEEDS_CSUM,
            gso_type,
            hdr_len: headers,
            gso_size: MTU - headers,
            csum_start: 20,
            csum_offset: 16,
        };
        assert_eq!(unfinished.hdr, expected);
        let segments = 60_000u32.div_ceil(u32::from(MTU - headers));
        assert_eq!(unfinished.segments, segments);
        assert_eq!(unfinished.seed, pseudo_sum(&packet));
    }
}

#[test]
fn the_mtu_is_the_limit_to_the_byte() {
    let fits = partial(tcp(&vec![7; usize::from(MTU) - 40], 0, false));
    assert!(!examined(&fits, None).unwrap().is_super_packet());
    let exceeds = partial(tcp(&vec![7; usize::from(MTU) - 39], 0, false));
    assert_eq!(examined(&exceeds, None).unwrap().segments, 2);
}

#[test]
fn a_long_packet_with_a_true_checksum_is_cut_and_one_with_a_wrong_one_is_not() {
    let whole = tcp(&[7; 4000], 3, false);
    let unfinished = examined(&whole, None).unwrap();
    let mut seeded = whole.clone();
    unfinished.seed(&mut seeded);
    assert!(unfinished.is_super_packet());
    assert_eq!(seeded, partial(whole.clone()));
    let mut damaged = whole;
    damaged[100] ^= 1;
    assert_eq!(examined(&damaged, None), None);
}

#[test]
fn udp_is_cut_only_where_the_kernel_named_a_size() {
    let packet = partial(udp(&[7; 30_000]));
    assert!(!examined(&packet, None).unwrap().is_super_packet());
    let unfinished = examined(&packet, Some(1000)).unwrap();
    let expected = VnetHdr {
        flags: vnet_hdr::F_NEEDS_CSUM,
        gso_type: vnet_hdr::GSO_UDP_L4,
        hdr_len: 28,
        gso_size: 1000,
        csum_start: 20,
        csum_offset: 6,
    };
    assert_eq!((unfinished.hdr, unfinished.segments), (expected, 30));
}

#[test]
fn fragments_and_other_protocols_are_never_touched() {
    let mut first = partial(udp(b"hello"));
    first[6] |= 0x20;
    assert_eq!(examined(&first, None), None);
    let mut other = partial(udp(b"hello"));
    other[9] = 1;
    assert_eq!(examined(&other, None), None);
}

#[test]
fn one_frame_with_a_segment_size_is_told_from_joined_ones() {
    let template = EncapTemplate::ipv4(Vni::DEFAULT, MacAddr::default());
    let frame = |packet: &[u8]| [&template.towards(MacAddr::default())[..], packet].concat();
    let flat = frame(&udp(&[7; 30_000]));
    assert!(is_flat(&flat, 1000));
    let small = frame(&udp(&[7; 100]));
    assert!(!is_flat(&small.repeat(5), small.len()));
    assert!(!is_flat(&small, small.len()));
    assert!(!is_flat(&[], 10));
}

proptest! {
    #[test]
    fn a_checksum_finished_here_is_true(
        payload in proptest::collection::vec(any::<u8>(), 0..300),
        is_tcp: bool,
    ) {
        let complete = if is_tcp { tcp(&payload, 3, false) } else { udp(&payload) };
        let mut packet = partial(complete.clone());
        let unfinished = examined(&packet, None).unwrap();
        unfinished.finish_checksum(&mut packet);
        prop_assert_eq!(packet, complete, "as another library writes it");
    }

    #[test]
    fn no_bytes_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 20..120),
        mtu: u16,
        segment in proptest::option::of(0usize..200),
        tcp: bool,
    ) {
        bytes[0] = 0x45;
        bytes[9] = if tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
        let len = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        bytes[6..8].fill(0);
        let packet = Packet::new_checked(&bytes).unwrap();
        if let Some(unfinished) = examine(&packet, mtu, segment) {
            let mut copy = bytes.clone();
            unfinished.finish_checksum(&mut copy);
        }
        let _ = is_flat(&bytes, segment.unwrap_or(1));
    }
}
