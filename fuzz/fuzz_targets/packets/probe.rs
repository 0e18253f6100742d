//! What follows the Ethernet header of a probe, and the frame on its way to the control side.
#![no_main]

use std::net::Ipv4Addr;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use uvxlan::dataplane::counters::Counter;
use uvxlan::dataplane::inbound::probes::{ProbeQueue, ProbeReceiver};
use uvxlan::route::peer::PeerId;
use uvxlan::wire::probe::{HEADER_LEN, Message};
use uvxlan::wire::vxlan::ENCAP_LEN;
use uvxlan::wire::{MacAddr, Vni};

const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

fuzz_target!(|bytes: &[u8]| {
    let message = Message::parse(bytes);
    assert_eq!(message.is_some(), acceptable(bytes), "{message:?}");
    if let Some(message) = message {
        let length = usize::from(message.length);
        let again = message.datagram(Vni::DEFAULT, PEER, OWN);
        assert_eq!(again.len(), ENCAP_LEN + length);
        assert_eq!(again[ENCAP_LEN..][..HEADER_LEN], bytes[..HEADER_LEN]);
        assert_eq!(Message::parse(&again[ENCAP_LEN..]), Some(message));
    }

    let queue = Arc::new(ProbeQueue::new(|| ()));
    let mut receiver = ProbeReceiver::new(Arc::clone(&queue));
    let frame = [&OWN.0[..], &PEER.0, &[0x88, 0xb5], bytes].concat();
    let counted = receiver.receive(PeerId(7), Ipv4Addr::LOCALHOST, &frame);
    let received = queue.next();
    assert_eq!(received.map(|probe| probe.message), message);
    let expected = match message {
        Some(_) => Counter::ProbesIn,
        None => Counter::InProbeMalformed,
    };
    assert_eq!(counted, expected);
    assert!(received.is_none_or(|probe| probe.mac == PEER));
});

/// The rules once more, over plain offsets.
fn acceptable(bytes: &[u8]) -> bool {
    let Some(head) = bytes.first_chunk::<40>() else {
        return false;
    };
    let length = usize::from(head[6]) << 8 | usize::from(head[7]);
    head[..5] == *b"uvxp\x01" && (1..=4).contains(&head[5]) && (40..=bytes.len()).contains(&length)
}
