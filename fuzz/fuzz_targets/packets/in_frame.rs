//! A UDP payload from anywhere, up to the packet written to the TUN device.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uvxlan::dataplane::inbound::header_checks::{LocalVtep, check_frame};
use uvxlan::wire::ipv4::{self, Packet};
use uvxlan::wire::vxlan::ecn::{self, Decapsulated};
use uvxlan::wire::vxlan::{ENCAP_LEN, EncapTemplate};
use uvxlan::wire::{MacAddr, Vni, flow};

const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const VTEP: LocalVtep = LocalVtep {
    vni: Vni::DEFAULT,
    mac: OWN,
};

fuzz_target!(|frame: &[u8]| {
    try_it(frame);
    // Random bytes hardly ever have the right checksum.
    let mut repaired = frame.to_vec();
    if repair(&mut repaired) {
        try_it(&repaired);
    }
});

/// Makes the inner header's checksum right, where there is a header.
fn repair(frame: &mut [u8]) -> bool {
    let Some(inner) = frame.get_mut(ENCAP_LEN..) else {
        return false;
    };
    let header_len = inner
        .first()
        .map_or(0, |first| usize::from(first & 0x0f) * 4);
    let Some(header) = inner
        .get_mut(..header_len)
        .filter(|header| header.len() >= 20)
    else {
        return false;
    };
    header[10..12].fill(0);
    let check = !sum(header);
    header[10..12].copy_from_slice(&check.to_be_bytes());
    true
}

fn try_it(frame: &[u8]) {
    let verdict = check_frame(&VTEP, frame);
    assert_eq!(verdict.is_ok(), acceptable(frame), "verdict {verdict:?}");
    let Ok(packet) = verdict else { return };

    assert!(packet.total_len() <= frame.len() - ENCAP_LEN);
    assert_eq!(
        packet.bytes(),
        &frame[ENCAP_LEN..ENCAP_LEN + packet.total_len()]
    );
    encapsulates_again(&packet);
    for outer in 0..=u8::MAX {
        takes_ecn(&packet, outer);
    }
}

/// The rules once more, written over plain offsets and in no order: I flag and nothing
/// else, our VNI, from another to us, IPv4 with lengths that fit.
fn acceptable(frame: &[u8]) -> bool {
    let Some((head, inner)) = frame.split_at_checked(22) else {
        return false;
    };
    if inner.len() < 20 {
        return false;
    }
    let header_len = usize::from(inner[0] & 0x0f) * 4;
    let total_len = usize::from(inner[2]) << 8 | usize::from(inner[3]);
    head[..8] == [8, 0, 0, 0, 0, 0, 1, 0]
        && head[8..14] == OWN.0
        && head[14..20] != OWN.0
        && head[20..] == [8, 0]
        && inner[0] >> 4 == 4
        && (20..=total_len).contains(&header_len)
        && total_len <= inner.len()
        && sum(&inner[..header_len]) == 0xffff
}

/// What came in goes out and comes in again unchanged, in the same flow.
fn encapsulates_again(packet: &Packet<'_>) {
    let mut again = EncapTemplate::ipv4(Vni::DEFAULT, PEER)
        .towards(OWN)
        .to_vec();
    again.extend_from_slice(packet.bytes());
    let back = check_frame(&VTEP, &again).expect("our own encapsulation is accepted");
    assert_eq!(back.bytes(), packet.bytes());
    assert_eq!(flow::hash(&back), flow::hash(packet));
}

/// ECN changes two bits and the checksum, which stays as right or as wrong as it was.
fn takes_ecn(packet: &Packet<'_>, outer: u8) {
    let tos = packet.tos();
    match ecn::decapsulate(outer, tos) {
        Decapsulated::Unchanged => {}
        Decapsulated::Drop => {
            assert_eq!(
                (outer & ecn::MASK, tos & ecn::MASK),
                (ecn::CE, ecn::NOT_ECT)
            );
        }
        Decapsulated::Set(codepoint) => {
            let mut copy = packet.bytes().to_vec();
            ipv4::set_tos(&mut copy, (tos & !ecn::MASK) | codepoint);
            let marked = Packet::new_checked(&copy).expect("still a packet");
            assert_eq!(marked.tos() & ecn::MASK, codepoint);
            assert_eq!(marked.tos() & !ecn::MASK, tos & !ecn::MASK);
            assert_eq!(marked.payload(), packet.payload());
            assert_eq!(flow::hash(&marked), flow::hash(packet));
            assert_eq!(header_sum(&marked), header_sum(packet));
        }
    }
}

/// One's complement sum of the whole header, its checksum included; 0xffff when right.
fn header_sum(packet: &Packet<'_>) -> u16 {
    sum(&packet.bytes()[..packet.header_len()])
}

fn sum(header: &[u8]) -> u16 {
    let mut sum = 0;
    for word in header.chunks_exact(2) {
        sum += u32::from(word[0]) << 8 | u32::from(word[1]);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
