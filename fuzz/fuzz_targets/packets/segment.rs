//! A virtio-net header and packet as a TUN device hands them over: segmenting, finishing the
//! checksum, and the ICMP message about it.
#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use uvxlan::offload::segment::{SegmentPlan, finish_checksum};
use uvxlan::wire::checksum::Checksummer;
use uvxlan::wire::icmp::{self, V4_MAX_LEN};
use uvxlan::wire::ipv4::Packet;
use uvxlan::wire::vnet_hdr::{self, VnetHdr};

const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fuzz_target!(|bytes: &[u8]| {
    let Some((header, packet)) = bytes.split_first_chunk::<{ vnet_hdr::LEN }>() else {
        return;
    };
    let vnet = VnetHdr::from_bytes(*header);
    segments(&vnet, packet);
    let mut whole = packet.to_vec();
    if finish_checksum(&vnet, &mut whole, Checksummer::PORTABLE).is_err() {
        assert_eq!(whole, packet, "refused and left alone");
    }
    tells(packet);
});

/// Every payload byte is in exactly one segment, in order, and lengths fit.
fn segments(vnet: &VnetHdr, packet: &[u8]) {
    let Ok(plan) = SegmentPlan::new(vnet, packet) else {
        return;
    };
    assert!(plan.count() > 0 && plan.header_len() <= packet.len());
    let mut header = vec![0; plan.header_len()];
    let mut expected = plan.header_len();
    for number in 0..plan.count() {
        let payload = plan
            .write_header(number, &mut header, Checksummer::PORTABLE)
            .expect("there is room for the header");
        assert_eq!(payload.start, expected);
        assert!(payload.len() <= usize::from(vnet.gso_size));
        expected = payload.end;
        if header[0] >> 4 == 4 {
            let segment = [header.as_slice(), &packet[payload]].concat();
            let parsed = Packet::new_checked(&segment).expect("a segment is a packet");
            assert_eq!(parsed.total_len(), segment.len());
        }
    }
    assert!(expected <= packet.len());
    assert!(
        plan.write_header(0, &mut header[1..], Checksummer::PORTABLE)
            .is_err(),
        "too little room is refused"
    );
}

/// A message about a packet is whole, short, and never about a message of its kind.
fn tells(packet: &[u8]) {
    let mut out = [0; V4_MAX_LEN];
    if let Ok(length) = icmp::fragmentation_needed(packet, SOURCE, 1400, &mut out) {
        let message = Packet::new_checked(&out[..length]).expect("a packet");
        assert_eq!((message.total_len(), message.source()), (length, SOURCE));
        let again = icmp::fragmentation_needed(&out[..length], SOURCE, 1400, &mut [0; V4_MAX_LEN]);
        assert!(again.is_err(), "no error about an error");
    }
}
