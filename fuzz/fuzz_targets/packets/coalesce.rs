//! Packets of one receive, split at their lengths: each is written exactly once, in the order
//! of its flow, and what is merged comes apart into the same packets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uvxlan::offload::coalesce::{Coalescer, PacketRef, Policy};
use uvxlan::offload::segment::SegmentPlan;
use uvxlan::wire::checksum::Checksummer;

const MTU: usize = 1450;

fuzz_target!(|bytes: &[u8]| {
    let packets = packets(bytes);
    let mut arena = Vec::new();
    let mut coalescer = Coalescer::new(Policy::new(MTU, Checksummer::PORTABLE));
    let mut places = Vec::new();
    for packet in &packets {
        places.push(PacketRef {
            offset: arena.len() as u32,
            len: packet.len() as u32,
        });
        arena.extend_from_slice(packet);
    }
    for place in &places {
        coalescer.push(&arena, *place).expect("inside of the arena");
    }
    let mut written = Vec::new();
    for write in coalescer.writes(&arena) {
        let members: Vec<_> = write.packets().collect();
        if write.is_merged() {
            let mut merged = write.header.to_vec();
            for piece in write.pieces() {
                merged.extend_from_slice(&arena[piece]);
            }
            let plan = SegmentPlan::new(&write.vnet, &merged).expect("what is merged can be cut");
            assert_eq!(plan.count(), members.len());
            for (number, member) in members.iter().enumerate() {
                let mut segment = vec![0; plan.header_len()];
                let payload = plan
                    .write_header(number, &mut segment, Checksummer::PORTABLE)
                    .expect("room");
                segment.extend_from_slice(&merged[payload]);
                let original = &arena[member.range()];
                // Identifications may differ where DF makes them meaningless, and with them
                // the header checksum; padding behind a packet is not carried.
                assert_eq!(segment[20..], original[20..segment.len()]);
                assert_eq!(segment[..4], original[..4]);
                assert_eq!(segment[12..20], original[12..20]);
            }
        }
        written.extend(members);
    }
    let mut sorted = written.clone();
    sorted.sort_by_key(|place| (place.offset, place.len));
    let mut all = places.clone();
    all.sort_by_key(|place| (place.offset, place.len));
    assert_eq!(sorted, all, "each packet once");
});

/// Up to 64 packets: a length of two bytes before each; 0 repeats the packet before it with
/// its TCP sequence number moved on, which random bytes would never hit.
fn packets(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut packets: Vec<Vec<u8>> = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length) % 1600);
        if packets.len() == 64 {
            break;
        }
        if length == 0 {
            if let Some(next) = packets.last().and_then(|last| successor(last)) {
                packets.push(next);
            }
            bytes = rest;
            continue;
        }
        let packet = rest.get(..length).unwrap_or(rest);
        packets.push(packet.to_vec());
        bytes = &rest[packet.len()..];
    }
    packets
}

/// The segment that follows a TCP segment over plain IPv4, checksums true.
fn successor(packet: &[u8]) -> Option<Vec<u8>> {
    let mut next = packet.to_vec();
    let total = usize::from(u16::from_be_bytes([*next.get(2)?, *next.get(3)?]));
    if next[0] != 0x45 || next.get(9) != Some(&6) || total != next.len() || total < 40 {
        return None;
    }
    let header_len = usize::from(next[32] >> 4) * 4;
    let payload = total.checked_sub(20 + header_len)?;
    let id = u16::from_be_bytes([next[4], next[5]]).wrapping_add(1);
    next[4..6].copy_from_slice(&id.to_be_bytes());
    let seq = u32::from_be_bytes([next[24], next[25], next[26], next[27]]);
    let seq = seq.wrapping_add(payload as u32);
    next[24..28].copy_from_slice(&seq.to_be_bytes());
    next[10..12].fill(0);
    let check = finish(sum(&next[..20], 0));
    next[10..12].copy_from_slice(&check);
    next[36..38].fill(0);
    let pseudo = sum(&next[12..20], 6 + (total as u32 - 20));
    let check = finish(sum(&next[20..], pseudo));
    next[36..38].copy_from_slice(&check);
    Some(next)
}

fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        sum + u32::from(u16::from_be_bytes([pair[0], low]))
    })
}

fn finish(mut sum: u32) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
