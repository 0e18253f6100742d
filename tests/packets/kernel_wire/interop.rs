//! Traffic between containers, with the kernel's vxlan on one side and our packet loop on the
//! other.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use uvxlan::dataplane::counters::Counter;
use uvxlan::dataplane::peer_counters::PeerTotals;
use uvxlan::route::peer::PeerId;
use uvxlan::sys::netns::Namespace;
use uvxlan::sys::udp::{MessageHead, SendBatch};
use uvxlan::testbed::Container;
use uvxlan::testbed::traffic::{
    PingPongRequest, PingRequest, TransferRequest, ping, tcp_transfer, udp_echo, udp_ping_pong,
};
use uvxlan::wire::checksum::Sum;

use crate::support::need;
use crate::support::wire::{Overlay, UNDERLAY, finish_on_sending, possible};

/// Payload of the longest echo that fits the overlay: 1450 less IPv4 and ICMP headers.
const LONGEST_ECHO: u16 = 1422;
/// Echo requests in flight: their buffers stay far below a socket's limit.
const WINDOW: usize = 32;

/// Sends one echo request of each payload size, with the size as its sequence number, and
/// returns the sizes whose reply was wrong, missing, or had another TTL than expected.
fn sweep(from: &Namespace, to: Ipv4Addr, identifier: u16, ttl: u8) -> Vec<u16> {
    from.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let destination = SockAddr::from(SocketAddrV4::new(to, 0));
        let mut todo = 0..=LONGEST_ECHO;
        let mut outstanding = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            while outstanding.len() < WINDOW {
                let Some(size) = todo.next() else { break };
                let request = echo(8, identifier, size);
                socket.send_to(&request, &destination).unwrap();
                outstanding.push(size);
            }
            if outstanding.is_empty() || Instant::now() > deadline {
                outstanding.extend(todo);
                return outstanding;
            }
            if let Some(size) = answered(&socket, identifier, ttl) {
                outstanding.retain(|other| *other != size);
            }
        }
    })
    .unwrap()
}

fn echo(kind: u8, identifier: u16, size: u16) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend(size.to_be_bytes());
    message.extend((0..size).map(|at| (at ^ size) as u8));
    let check = Sum::of(&message).finish();
    message[2..4].copy_from_slice(&check);
    message
}

fn answered(mut socket: &Socket, identifier: u16, ttl: u8) -> Option<u16> {
    let mut buffer = [0; 2048];
    let length = std::io::Read::read(&mut socket, &mut buffer).ok()?;
    let packet = &buffer[..length];
    let message = packet.get(20..)?;
    let size = u16::from_be_bytes([*message.get(6)?, *message.get(7)?]);
    (packet[8] == ttl && message == echo(0, identifier, size)).then_some(size)
}

#[test]
fn an_echo_of_every_size_passes_both_ways() {
    need!(possible());
    let overlay = Overlay::new();
    for (from, to) in overlay.directions() {
        let lost = sweep(from.namespace(), to.address(), 7, 62);
        assert!(lost.is_empty(), "payload sizes lost: {lost:?}");
        for payload_len in [1423, 4000, 20_000] {
            let request = PingRequest {
                payload_len,
                ..PingRequest::new(to.address())
            };
            let report = ping(from.namespace(), request).unwrap();
            assert!(report.is_complete(), "{payload_len} bytes: {report:?}");
            assert_eq!(report.ttls, [62, 62, 62], "two routers on the path");
        }
    }
    overlay.assert_nothing_dropped();
}

#[test]
fn datagrams_of_odd_sizes_come_back() {
    need!(possible());
    let overlay = Overlay::new();
    for (from, to) in overlay.directions() {
        let echo = udp_echo(to.namespace(), to.address()).unwrap();
        // 1422 is the largest that fits; larger ones are sent as inner fragments.
        for payload_len in [0, 1, 3, 7, 555, 1399, 1421, 1422, 1423, 3001, 9999, 30_001] {
            let request = PingPongRequest {
                destination: echo.address(),
                payload_len,
                count: 3,
                timeout: Duration::from_secs(2),
            };
            let report = udp_ping_pong(from.namespace(), request).unwrap();
            assert_eq!(report.received, 3, "{payload_len} bytes: {report:?}");
        }
    }
    overlay.assert_nothing_dropped();
}

fn transfer(from: &Container, to: &Container, bytes: u64) {
    let request = TransferRequest::new(to.address(), bytes);
    let report = tcp_transfer(from.namespace(), to.namespace(), request, |_| ()).unwrap();
    assert_eq!(report.bytes, bytes);
    assert!(report.is_intact(), "{report:?}");
}

#[test]
fn tcp_arrives_intact_both_ways_with_offloads_of_the_link() {
    need!(possible());
    let overlay = Overlay::new();
    transfer(&overlay.in_ours, &overlay.in_kernel, 8 << 20);
    transfer(&overlay.in_kernel, &overlay.in_ours, 8 << 20);
    let totals = overlay.assert_nothing_dropped();
    // Otherwise the test would prove nothing.
    assert!(totals.get(Counter::PartialChecksums) > 0, "{totals:?}");
    // The kernel peer's packets arrive unsegmented, and count as one each.
    let segments = (8 << 20) / 1410;
    assert!(totals.get(Counter::Delivered) < segments, "{totals:?}");
}

#[test]
fn tcp_arrives_intact_both_ways_over_a_plain_link() {
    need!(possible());
    let overlay = Overlay::new();
    for host in [overlay.kernel_host(), overlay.our_host()] {
        need!(finish_on_sending(host.node(), UNDERLAY));
    }
    transfer(&overlay.in_ours, &overlay.in_kernel, 8 << 20);
    transfer(&overlay.in_kernel, &overlay.in_ours, 8 << 20);
    let totals = overlay.assert_nothing_dropped();
    let delivered = totals.get(Counter::Delivered);
    let partial = totals.get(Counter::PartialChecksums);
    assert!(
        partial * 1000 < delivered.max(1000),
        "{partial} of {delivered} by chance"
    );
}

#[test]
fn tcp_reaches_the_hosts_themselves() {
    need!(possible());
    let overlay = Overlay::new();
    let (kernel, ours) = (overlay.kernel_host(), overlay.our_host());
    for (from, to, gateway) in [
        (kernel, ours, overlay.in_ours.gateway()),
        (ours, kernel, overlay.in_kernel.gateway()),
    ] {
        let request = TransferRequest::new(gateway, 1 << 20);
        let report = tcp_transfer(from.namespace(), to.namespace(), request, |_| ()).unwrap();
        assert!(report.is_intact(), "{report:?}");
    }
    overlay.assert_nothing_dropped();
}

/// A container that sends UDP super-packets, as QUIC does: the kernel peer segments them for a
/// socket without UDP_GRO.
#[test]
fn datagrams_cut_by_the_kernel_arrive_one_by_one() {
    need!(possible());
    const SIZE: usize = 1200;
    const COUNT: usize = 30;
    let overlay = Overlay::new();
    for (from, to) in overlay.directions() {
        let receiver = to
            .namespace()
            .run(|| UdpSocket::bind((to.address(), 0)).unwrap())
            .unwrap();
        receiver
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        let SocketAddr::V4(destination) = receiver.local_addr().unwrap() else {
            panic!("an IPv4 socket")
        };
        let content: Vec<u8> = (0..SIZE * COUNT).map(|at| (at / 7) as u8).collect();
        send_in_one(from, destination, &content, SIZE);
        let mut buffer = [0; 4096];
        for (number, expected) in content.chunks(SIZE).enumerate() {
            let length = receiver.recv(&mut buffer).unwrap_or_else(|error| {
                panic!(
                    "datagram {number}: {error}; {:?}",
                    overlay.dataplane.totals()
                )
            });
            assert_eq!(&buffer[..length], expected, "datagram {number}");
        }
    }
    overlay.assert_nothing_dropped();
}

fn send_in_one(from: &Container, destination: SocketAddrV4, content: &[u8], size: usize) {
    let socket = from
        .namespace()
        .run(|| uvxlan::sys::udp::UdpSocket::sender(from.address()).unwrap())
        .unwrap();
    let mut batch = SendBatch::new(1);
    let mut sending = batch.start();
    sending.message(MessageHead {
        destination,
        segment: u16::try_from(size).ok(),
        ecn: 0,
    });
    sending.piece(content);
    assert_eq!(sending.send(&socket, 0).unwrap(), 1);
}

#[test]
fn packets_are_counted_per_peer_in_both_directions() {
    need!(possible());
    let overlay = Overlay::new();
    let (near, far) = (&overlay.in_ours, &overlay.in_kernel);
    let counted = || overlay.dataplane.peer_totals(PeerId(0));

    let before = counted();
    let request = PingRequest {
        count: 7,
        payload_len: 100,
        ..PingRequest::new(far.address())
    };
    let report = ping(near.namespace(), request).unwrap();
    assert!(report.is_complete(), "{report:?}");
    let pinged = counted() - before;
    assert_eq!((pinged.out_packets, pinged.in_packets), (7, 7));
    assert_eq!((pinged.out_bytes, pinged.in_bytes), (7 * 128, 7 * 128));

    // Super-packets count as their segments.
    let bytes = 8 << 20;
    let request = TransferRequest::new(far.address(), bytes);
    let report = tcp_transfer(near.namespace(), far.namespace(), request, |_| ()).unwrap();
    assert!(report.is_intact(), "{report:?}");
    // A late ACK may arrive between the two readings.
    let deadline = Instant::now() + Duration::from_secs(5);
    let passed = loop {
        let (totals, passed) = (overlay.assert_nothing_dropped(), counted());
        let both = [Counter::Sent, Counter::Delivered].map(|counter| totals.get(counter));
        if both == [passed.out_packets, passed.in_packets] {
            break passed;
        }
        assert!(Instant::now() < deadline, "{passed:?}, but {totals}");
    };
    let headers = passed.out_bytes - bytes;
    assert!(
        headers > passed.out_packets * 20 && headers < bytes / 4,
        "{passed:?} of {bytes} bytes"
    );
    assert_eq!(
        overlay.dataplane.peer_totals(PeerId(1)),
        PeerTotals::default()
    );
}
