//! Bytes read from the TUN device, up to the frame towards a peer.
#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use uvxlan::dataplane::counters::Counter;
use uvxlan::dataplane::inbound::header_checks::{LocalVtep, check_frame};
use uvxlan::wire::MacAddr;
use uvxlan::wire::Vni;
use uvxlan::wire::flow;
use uvxlan::wire::ipv4::{self, Packet};
use uvxlan::wire::vxlan::ecn;
use uvxlan::wire::vxlan::{self, EncapTemplate};

fuzz_target!(|bytes: &[u8]| {
    let Ok(packet) = Packet::new_checked(bytes) else {
        return;
    };
    reads_the_header(&packet, bytes);
    ignores_padding(&packet);
    hashes_flows(&packet);
    reaches_a_peer(&packet);
});

fn reads_the_header(packet: &Packet<'_>, bytes: &[u8]) {
    let total = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
    assert_eq!(packet.bytes(), &bytes[..total]);
    assert_eq!(packet.total_len(), total);
    assert!((20..=60).contains(&packet.header_len()));
    assert_eq!(packet.header_len() + packet.payload().len(), total);
    assert_eq!(
        (packet.tos(), packet.ttl(), packet.protocol()),
        (bytes[1], bytes[8], bytes[9])
    );
    let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap());
    assert_eq!(
        (packet.source(), packet.destination()),
        (address(12), address(16))
    );
    let offset = u16::from_be_bytes([bytes[6] & 0x1f, bytes[7]]);
    assert_eq!(packet.is_fragment(), offset != 0 || bytes[6] & 0x20 != 0);
    assert_eq!(packet.dont_fragment(), bytes[6] & 0x40 != 0);
    assert_ne!(ecn::encapsulate(packet.tos()), ecn::CE);
}

fn ignores_padding(packet: &Packet<'_>) {
    let mut padded = packet.bytes().to_vec();
    padded.extend([0xff; 26]);
    let again = Packet::new_checked(&padded).expect("padding does not hurt");
    assert_eq!(again.bytes(), packet.bytes());
}

/// A hash depends on nothing but the flow; ports count only where each packet has them.
fn hashes_flows(packet: &Packet<'_>) {
    let hash = flow::hash(packet);
    for buckets in 1..=64 {
        assert!(flow::bucket(hash, buckets) < buckets);
    }
    let mut other = packet.bytes().to_vec();
    ipv4::set_tos(&mut other, !packet.tos());
    other[8] = other[8].wrapping_add(1);
    let has_ports = matches!(
        packet.protocol(),
        ipv4::PROTOCOL_TCP | ipv4::PROTOCOL_UDP if !packet.is_fragment()
    );
    let behind = packet.header_len() + if has_ports { 4 } else { 0 };
    for byte in other.iter_mut().skip(behind) {
        *byte = !*byte;
    }
    let other = Packet::new_checked(&other).expect("lengths are as before");
    assert_eq!(flow::hash(&other), hash);
}

/// The longest inner packet does not fit an outer datagram; all others arrive whole, unless
/// their header is damaged.
fn reaches_a_peer(packet: &Packet<'_>) {
    let (source, mac) = (MacAddr([2, 0, 0, 0, 0, 2]), MacAddr([2, 0, 0, 0, 0, 3]));
    let vni = Vni::MAX;
    let mut frame = EncapTemplate::ipv4(vni, source).towards(mac).to_vec();
    frame.extend_from_slice(packet.bytes());
    assert_eq!(vxlan::parse(&frame), Ok(vni));
    match check_frame(&LocalVtep { vni, mac }, &frame) {
        Ok(inner) => {
            assert!(packet.is_header_undamaged());
            assert_eq!(inner.bytes(), packet.bytes());
        }
        Err(reason) => {
            assert_eq!(reason, Counter::InHeaderChecksum);
            assert!(!packet.is_header_undamaged());
        }
    }
}
