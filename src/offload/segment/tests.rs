use super::*;
use crate::wire::vnet_hdr::{F_NEEDS_CSUM, GSO_NONE, GSO_UDP};
use proptest::prelude::*;

/// A TCP super-packet over IPv4: 20 + 20 bytes of header, `payload` bytes.
fn tcp4(payload: usize, flags: Flags) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((40 + payload as u16).to_be_bytes());
    packet.extend([
        0xff,
        0xff,
        0x40,
        0,
        64,
        ip::TCP,
        0,
        0,
        10,
        0,
        0,
        1,
        10,
        0,
        1,
        2,
    ]);
    packet.extend([0x30, 0x39, 0, 80, 0xff, 0xff, 0xff, 0xf0, 1, 2, 3, 4]);
    packet.extend([0x50, flags.0, 1, 0, 0, 0, 0, 0]);
    packet.extend((0..payload).map(|i| i as u8));
    packet
}

fn tso4(gso_size: u16) -> VnetHdr {
    VnetHdr {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 9999,
        gso_size,
        csum_start: 20,
        csum_offset: CSUM_OFFSET_TCP,
    }
}

fn segments(vnet: &VnetHdr, packet: &[u8]) -> Vec<Vec<u8>> {
    let plan = SegmentPlan::new(vnet, packet).unwrap();
    (0..plan.count())
        .map(|index| {
            let mut segment = vec![0; plan.header_len()];
            let payload = plan
                .write_header(index, &mut segment, Checksummer::PORTABLE)
                .unwrap();
            segment.extend(&packet[payload]);
            assert_eq!(segment.len(), plan.segment_len(index));
            segment
        })
        .collect()
}

#[test]
fn flags_sequence_and_identification_follow_the_kernel() {
    let flags = Flags::ACK
        .with(Flags::PSH)
        .with(Flags::FIN)
        .with(Flags::CWR);
    let made = segments(&tso4(100), &tcp4(250, flags));
    assert_eq!(
        made.iter().map(Vec::len).collect::<Vec<_>>(),
        [140, 140, 90]
    );
    let of = |index: usize| {
        let segment: &[u8] = &made[index];
        let tcp = crate::wire::tcp::TcpSegment::parse(&segment[20..]).unwrap();
        (
            u16::from_be_bytes([segment[4], segment[5]]),
            tcp.seq(),
            tcp.flags(),
        )
    };
    assert_eq!(of(0), (0xffff, 0xffff_fff0, Flags::ACK.with(Flags::CWR)));
    assert_eq!(of(1), (0, 84, Flags::ACK));
    assert_eq!(
        of(2),
        (1, 184, Flags::ACK.with(Flags::PSH).with(Flags::FIN))
    );
}

#[test]
fn a_super_packet_of_one_segment_keeps_its_flags() {
    let flags = Flags::ACK.with(Flags::PSH).with(Flags::CWR);
    let made = segments(
        &VnetHdr {
            gso_type: GSO_TCPV4 | GSO_ECN,
            ..tso4(100)
        },
        &tcp4(60, flags),
    );
    assert_eq!(made.len(), 1);
    assert_eq!(made[0][33], flags.0);
}

#[test]
fn bytes_behind_the_ip_length_are_not_sent() {
    let mut packet = tcp4(150, Flags::ACK);
    packet.extend([0xee; 30]);
    let made = segments(&tso4(100), &packet);
    assert_eq!(made.iter().map(Vec::len).sum::<usize>(), 150 + 2 * 40);
}

#[test]
fn contradictions_are_named() {
    let packet = tcp4(250, Flags::ACK);
    let error = |vnet: VnetHdr, packet: &[u8]| SegmentPlan::new(&vnet, packet).err();
    let vnet = tso4(100);
    for gso_type in [GSO_NONE, GSO_UDP, GSO_UDP_L4 | GSO_ECN, GSO_TCPV4 | 0x20] {
        assert_eq!(
            error(VnetHdr { gso_type, ..vnet }, &packet),
            Some(SegmentError::GsoType(gso_type))
        );
    }
    assert_eq!(
        error(
            VnetHdr {
                gso_type: GSO_TCPV6,
                ..vnet
            },
            &packet
        ),
        Some(SegmentError::Mismatch {
            gso_type: GSO_TCPV6,
            version: 4,
            protocol: ip::TCP
        })
    );
    assert_eq!(
        error(
            VnetHdr {
                gso_size: 0,
                ..vnet
            },
            &packet
        ),
        Some(SegmentError::GsoSize(290))
    );
    assert!(matches!(
        error(
            VnetHdr {
                csum_start: 24,
                ..vnet
            },
            &packet
        ),
        Some(SegmentError::ChecksumPlace {
            start: 24,
            transport: 20,
            ..
        })
    ));
    assert_eq!(
        error(vnet, &packet[..200]),
        Some(SegmentError::Truncated(200))
    );
    let mut fragment = packet.clone();
    fragment[6] = 0x20;
    assert_eq!(error(vnet, &fragment), Some(SegmentError::Unsegmentable));
    let mut version = packet;
    version[0] = 0x55;
    assert_eq!(error(vnet, &version), Some(SegmentError::Version(5)));
}

#[test]
fn mistakes_of_the_caller_are_errors() {
    let packet = tcp4(250, Flags::ACK);
    let plan = SegmentPlan::new(&tso4(100), &packet).unwrap();
    let mut space = [0; 60];
    assert_eq!(
        plan.write_header(3, &mut space, Checksummer::PORTABLE),
        Err(SegmentError::Index { index: 3, count: 3 })
    );
    assert_eq!(
        plan.write_header(0, &mut space[..39], Checksummer::PORTABLE),
        Err(SegmentError::HeaderSpace { need: 40, have: 39 })
    );
    assert!(plan.payload(usize::MAX).is_empty());
}

#[test]
fn a_partial_checksum_is_finished_in_place() {
    // IPv4 and UDP with the payload "hi!"; the seed is the pseudo-header sum.
    let mut packet = vec![
        0x45,
        0,
        0,
        31,
        0,
        0,
        0,
        0,
        64,
        ip::UDP,
        0,
        0,
        10,
        0,
        0,
        1,
        10,
        0,
        1,
        2,
    ];
    packet.extend([0x10, 0, 0, 53, 0, 11, 0, 0, b'h', b'i', b'!']);
    let pseudo = Sum::of(&[10, 0, 0, 1, 10, 0, 1, 2, 0, ip::UDP, 0, 11]);
    packet[26..28].copy_from_slice(&pseudo.fold());
    let vnet = VnetHdr {
        flags: F_NEEDS_CSUM,
        csum_start: 20,
        csum_offset: CSUM_OFFSET_UDP,
        ..VnetHdr::default()
    };
    let untouched = packet.clone();
    assert_eq!(
        finish_checksum(&VnetHdr::default(), &mut packet, Checksummer::PORTABLE),
        Ok(())
    );
    assert_eq!(packet, untouched);
    assert_eq!(
        finish_checksum(&vnet, &mut packet, Checksummer::PORTABLE),
        Ok(())
    );
    assert!((pseudo + Sum::of(&packet[20..])).is_valid());
    let far = VnetHdr {
        csum_start: 30,
        ..vnet
    };
    assert!(finish_checksum(&far, &mut packet, Checksummer::PORTABLE).is_err());
    let beyond = VnetHdr {
        csum_start: 32,
        ..vnet
    };
    assert!(finish_checksum(&beyond, &mut packet, Checksummer::PORTABLE).is_err());
}

proptest! {
    /// Nothing the kernel or a bug could hand over makes the worker panic, and whatever is
    /// accepted stays inside of the packet.
    #[test]
    fn any_bytes_are_survived(
        vnet in any::<[u8; 10]>(),
        known in prop::option::of((0..6u8, 0..3u16, 1..2000u16)),
        mut packet in prop::collection::vec(any::<u8>(), 0..400),
        shape in prop::option::of((any::<bool>(), prop::sample::select(vec![0u8, 6, 17, 43, 44, 60]))),
    ) {
        let mut vnet = VnetHdr::from_bytes(vnet);
        if let Some((gso_type, place, gso_size)) = known {
            vnet = VnetHdr { flags: 0, gso_type, gso_size, csum_start: 20 * place, ..vnet };
        }
        if let (Some((v6, protocol)), true) = (shape, packet.len() > 10) {
            packet[0] = if v6 { 0x60 } else { 0x40 | (packet[0] & 0x0f) };
            packet[if v6 { 6 } else { 9 }] = protocol;
            let at = if v6 { 4 } else { 2 };
            let len = packet.len().saturating_sub(if v6 { 40 } else { 0 }) as u16;
            packet[at..at + 2].copy_from_slice(&len.to_be_bytes());
            if !v6 { packet[6] &= 0x40; packet[7] = 0; }
        }
        if let Ok(plan) = SegmentPlan::new(&vnet, &packet) {
            let mut space = vec![0; plan.header_len()];
            for index in 0..plan.count() {
                let payload = plan.write_header(index, &mut space, Checksummer::PORTABLE).unwrap();
                prop_assert!(packet.get(payload).is_some());
            }
        }
        let _ = finish_checksum(&vnet, &mut packet, Checksummer::PORTABLE);
    }
}
