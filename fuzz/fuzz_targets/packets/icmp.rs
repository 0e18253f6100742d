//! ICMP: the errors that are written about packets of containers, and the messages that a
//! raw socket hands to the probes.
#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use uvxlan::wire::checksum::Sum;
use uvxlan::wire::icmp::echo::Received;
use uvxlan::wire::icmp::{self, V4_MAX_LEN};
use uvxlan::wire::ipv4::Packet;

const US: Ipv4Addr = Ipv4Addr::new(10, 5, 1, 0);

fuzz_target!(|input: (u16, &[u8])| {
    let (mtu, bytes) = input;
    let mut space = [0; V4_MAX_LEN];
    if let Ok(length) = icmp::fragmentation_needed(bytes, US, mtu, &mut space) {
        is_whole_v4(bytes, &space[..length]);
    }
    // Too little space is an error and no panic.
    let mut little = [0; 30];
    let _ = icmp::fragmentation_needed(bytes, US, mtu, &mut little);
    hears(bytes);
});

fn is_whole_v4(about: &[u8], message: &[u8]) {
    assert!(message.len() <= V4_MAX_LEN);
    let packet = Packet::new_checked(message).expect("what is written is a packet");
    assert_eq!(packet.source(), US);
    assert_eq!(packet.destination().octets(), about[12..16]);
    assert!(Sum::of(packet.payload()).is_valid());
    // What it quotes is the beginning of the packet it is about.
    let quote = &packet.payload()[8..];
    assert_eq!(quote, &about[..quote.len()]);
}

fn hears(bytes: &[u8]) {
    let Some(message) = Received::parse(bytes) else {
        return;
    };
    if let Some((_, body)) = message.reply(7) {
        assert!(body.len() + 28 <= bytes.len());
    }
    let _ = message.relation(7, 1, b"nonce");
}
