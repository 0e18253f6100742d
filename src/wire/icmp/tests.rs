use super::*;
use etherparse::{Icmpv4Slice, Icmpv4Type, NetSlice, SlicedPacket, TransportSlice, icmpv4};
use proptest::prelude::*;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 0);

fn udp4(payload: usize) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((28 + payload as u16).to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 63, 17, 0, 0, 10, 244, 1, 7, 10, 244, 2, 9]);
    packet.extend([0x10, 0, 0, 53, 0, 0, 0, 0]);
    packet.extend((0..payload).map(|i| i as u8));
    packet
}

fn icmpv4(message: &[u8]) -> Icmpv4Slice<'_> {
    let parsed = SlicedPacket::from_ip(message).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &parsed.net else {
        panic!("no IPv4")
    };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    assert_eq!(
        (header.source, header.destination),
        (GATEWAY.octets(), [10, 244, 1, 7])
    );
    let Some(TransportSlice::Icmpv4(icmp)) = parsed.transport else {
        panic!("no ICMP")
    };
    let computed = icmp.icmp_type().calc_checksum(icmp.payload());
    assert_eq!(icmp.header().checksum, computed);
    icmp
}

#[test]
fn fragmentation_needed_tells_the_mtu_and_quotes_the_packet() {
    let mut out = [0; 600];
    let offender = udp4(1400);
    let len = fragmentation_needed(&offender, GATEWAY, 1398, &mut out).unwrap();
    assert_eq!(len, V4_MAX_LEN);
    let icmp = icmpv4(&out[..len]);
    let expected = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1398 };
    assert_eq!(
        icmp.icmp_type(),
        Icmpv4Type::DestinationUnreachable(expected)
    );
    assert_eq!(icmp.payload(), &offender[..548]);
}

#[test]
fn a_short_packet_is_quoted_whole_without_what_follows_it() {
    let mut out = [0; 600];
    let mut offender = udp4(3);
    let whole = offender.clone();
    offender.extend([0xee; 9]);
    let len = fragmentation_needed(&offender, GATEWAY, 600, &mut out).unwrap();
    assert_eq!(icmpv4(&out[..len]).payload(), &whole[..]);
}

/// `udp4(20)` with bytes set at offsets.
fn changed4(changes: &[(usize, u8)]) -> Vec<u8> {
    let mut packet = udp4(20);
    for (at, byte) in changes {
        packet[*at] = *byte;
    }
    packet
}

#[test]
fn what_must_not_be_answered_is_not() {
    let mut out = [0; 600];
    for (changes, expected) in [
        (&[(9, 1), (20, 3)][..], NoIcmp::Error),
        (&[(9, 1), (20, 11)], NoIcmp::Error),
        (&[(9, 1), (20, 5)], NoIcmp::Error),
        (&[(7, 1)], NoIcmp::LaterFragment),
        (&[(6, 0x20), (7, 9)], NoIcmp::LaterFragment),
        (&[(12, 224)], NoIcmp::Group),
        (&[(12, 255), (13, 255), (14, 255), (15, 255)], NoIcmp::Group),
        (&[(12, 0), (13, 0), (14, 0), (15, 0)], NoIcmp::Group),
        (&[(12, 127)], NoIcmp::Group),
        (&[(16, 239)], NoIcmp::Group),
        (&[(0, 0x65)], NoIcmp::NotIp),
        (&[(0, 0x44)], NoIcmp::NotIp),
        (&[(2, 0xff)], NoIcmp::NotIp),
    ] {
        let offender = changed4(changes);
        assert_eq!(
            fragmentation_needed(&offender, GATEWAY, 600, &mut out),
            Err(expected),
            "{changes:?}"
        );
    }
    // An echo request and a first fragment are answered.
    for changes in [&[(9, 1), (20, 8)][..], &[(6, 0x20)]] {
        assert_eq!(
            fragmentation_needed(&changed4(changes), GATEWAY, 600, &mut out),
            Ok(76)
        );
    }
    let short = NoIcmp::Space { need: 76, have: 75 };
    assert_eq!(
        fragmentation_needed(&udp4(20), GATEWAY, 600, &mut out[..75]),
        Err(short)
    );
}

proptest! {
    #[test]
    fn any_bytes_are_survived(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        first in prop::option::of(prop::sample::select(vec![0x45u8, 0x46, 0x60])),
        space in 0..700usize,
    ) {
        if let (Some(first), Some(byte)) = (first, bytes.first_mut()) {
            *byte = first;
        }
        let mut out = vec![0; space];
        let written = fragmentation_needed(&bytes, GATEWAY, 1400, &mut out);
        prop_assert!(written.is_err() || written.is_ok_and(|len| len <= space));
    }
}
