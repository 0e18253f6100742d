use super::*;
use crate::dataplane::outbound::batch::{MessageKey, Span};
use crate::dataplane::tap::Taps;
use crate::sys::udp::ReceiveBatch;
use std::net::Ipv4Addr;
use std::time::Instant;

fn transmitter(counters: &Arc<Counters>) -> Transmitter {
    let sockets = (0..2)
        .map(|_| UdpSocket::sender(Ipv4Addr::LOCALHOST).unwrap())
        .collect();
    let path_mtu = PathMtuSocket::new(Ipv4Addr::LOCALHOST).unwrap();
    let observer = Taps::default().observer();
    Transmitter::new(
        sockets,
        path_mtu,
        Arc::clone(counters),
        Segmentation::Kernel,
        observer,
    )
}

fn received(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let mut batch = ReceiveBatch::new(32, 65_536);
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut all = Vec::new();
    while all.len() < count && Instant::now() < deadline {
        let Ok(slots) = batch.receive(socket, usize::MAX) else {
            continue;
        };
        for slot in 0..slots {
            let info = batch.datagram(slot);
            all.push(batch.buffer()[info.start..info.start + info.len].to_vec());
        }
    }
    all
}

#[test]
fn every_datagram_of_a_plan_arrives_whole_and_is_counted() {
    let receiver = UdpSocket::receiver(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let destination = receiver.local_address().unwrap();
    let counters = Arc::new(Counters::default());
    let mut transmitter = transmitter(&counters);
    let heads: Vec<u8> = (0..100).collect();
    let packets: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
    let mut plan = SendPlan::new(64);
    let mut expected = Vec::new();
    for number in 0..100u32 {
        let len = [700, 700, 300][number as usize % 3];
        let head = Span {
            start: number,
            len: 1,
        };
        let payload = Span {
            start: number * 90,
            len,
        };
        let key = MessageKey {
            destination,
            bucket: (number % 2) as u16,
            ecn: 0,
        };
        plan.push(key, head, payload);
        expected.push([&heads[head.range()], &packets[payload.range()]].concat());
    }
    transmitter.flush(
        &plan,
        Buffers {
            heads: &heads,
            packets: &packets,
        },
    );
    let mut all = received(&receiver, expected.len());
    all.sort();
    expected.sort();
    assert_eq!(all, expected);
    assert_eq!(counters.get(Counter::Sent), 100);
}

#[test]
fn a_refused_message_affects_no_other() {
    let receiver = UdpSocket::receiver(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let destination = receiver.local_address().unwrap();
    let counters = Arc::new(Counters::default());
    let mut transmitter = transmitter(&counters);
    let packets = vec![1; 70_000];
    let mut plan = SendPlan::new(64);
    // Broadcast without SO_BROADCAST is refused with EACCES.
    let forbidden = SocketAddrV4::new(Ipv4Addr::BROADCAST, 9);
    for (destination, len) in [
        (destination, 10),
        (forbidden, 10),
        (destination, 66_000),
        (destination, 20),
    ] {
        let key = MessageKey {
            destination,
            bucket: 0,
            ecn: 0,
        };
        plan.push(key, Span::default(), Span { start: 0, len });
    }
    transmitter.flush(
        &plan,
        Buffers {
            heads: &[],
            packets: &packets,
        },
    );
    assert_eq!(received(&receiver, 2), [vec![1; 10], vec![1; 20]]);
    let dropped = [
        Counter::Sent,
        Counter::OutForbidden,
        Counter::OutTooBig,
        Counter::OutUnreachable,
    ];
    let [sent, forbidden, too_big, unreachable] = dropped.map(|counter| counters.get(counter));
    assert_eq!((sent, too_big, forbidden + unreachable), (2, 1, 1));
}
