use super::*;
use std::time::{Duration, Instant};

fn receive(batch: &mut ReceiveBatch, socket: &UdpSocket) -> usize {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match batch.receive(socket, usize::MAX) {
            Ok(count) => return count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < deadline, "nothing arrived");
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn pair() -> (UdpSocket, UdpSocket, SocketAddrV4) {
    let receiver = UdpSocket::receiver(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = receiver.local_address().unwrap();
    (
        UdpSocket::sender(Ipv4Addr::LOCALHOST).unwrap(),
        receiver,
        address,
    )
}

#[test]
fn messages_arrive_with_pieces_joined_and_ecn_kept() {
    let (sender, receiver, destination) = pair();
    let mut batch = SendBatch::new(8);
    let mut sending = batch.start();
    sending.message(MessageHead {
        destination,
        segment: None,
        ecn: 2,
    });
    sending.piece(b"hello ");
    sending.piece(b"world");
    sending.message(MessageHead {
        destination,
        segment: None,
        ecn: 0,
    });
    sending.piece(b"second");
    assert_eq!(sending.send(&sender, 0).unwrap(), 2);
    let mut received = ReceiveBatch::new(4, 2048);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        for slot in 0..receive(&mut received, &receiver) {
            let info = received.datagram(slot);
            assert_eq!(info.source, sender.local_address().unwrap());
            let bytes = received.buffer()[info.start..info.start + info.len].to_vec();
            seen.push((bytes, info.tos, info.truncated));
        }
    }
    assert_eq!(seen[0], (b"hello world".to_vec(), 2, false));
    assert_eq!(seen[1], (b"second".to_vec(), 0, false));
}

#[test]
fn segments_leave_in_one_message_and_arrive_joined() {
    let (sender, receiver, destination) = pair();
    if !sender.can_segment() || !receiver.enable_gro() {
        println!("SKIPPED: this kernel has no UDP_SEGMENT or no UDP_GRO");
        return;
    }
    let payload: Vec<u8> = (0..2500u32).map(|i| i as u8).collect();
    let mut batch = SendBatch::new(8);
    let mut sending = batch.start();
    sending.message(MessageHead {
        destination,
        segment: Some(1000),
        ecn: 1,
    });
    sending.piece(&payload);
    assert_eq!(sending.send(&sender, 0).unwrap(), 1);
    let mut received = ReceiveBatch::new(4, 65_536);
    let mut bytes = Vec::new();
    while bytes.len() < payload.len() {
        for slot in 0..receive(&mut received, &receiver) {
            let info = received.datagram(slot);
            assert_eq!(info.tos, 1);
            assert!(info.segment.is_none_or(|size| size == 1000));
            bytes.extend_from_slice(&received.buffer()[info.start..info.start + info.len]);
        }
    }
    assert_eq!(bytes, payload);
}

#[test]
fn a_datagram_longer_than_the_slot_is_truncated() {
    let (sender, receiver, destination) = pair();
    let mut batch = SendBatch::new(1);
    let mut sending = batch.start();
    sending.message(MessageHead {
        destination,
        segment: None,
        ecn: 0,
    });
    sending.piece(&[7; 100]);
    assert!(sending.is_full());
    sending.send(&sender, 0).unwrap();
    let mut received = ReceiveBatch::new(1, 64);
    assert_eq!(receive(&mut received, &receiver), 1);
    let info = received.datagram(0);
    assert_eq!((info.len, info.truncated), (64, true));
}

#[test]
fn an_error_is_the_first_unsent_messages_own() {
    let (sender, _receiver, destination) = pair();
    let mut batch = SendBatch::new(4);
    let huge = vec![0; 65_508];
    let mut sending = batch.start();
    sending.message(MessageHead {
        destination,
        segment: None,
        ecn: 0,
    });
    sending.piece(b"fits");
    sending.message(MessageHead {
        destination,
        segment: None,
        ecn: 0,
    });
    sending.piece(&huge);
    sending.message(MessageHead {
        destination,
        segment: None,
        ecn: 0,
    });
    sending.piece(b"fits too");
    assert_eq!(sending.send(&sender, 0).unwrap(), 1);
    let error = sending.send(&sender, 1).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    assert_eq!(sending.send(&sender, 2).unwrap(), 1);
}

#[test]
fn the_interface_is_reported() {
    let (sender, receiver, destination) = pair();
    receiver.enable_gro();
    receiver.report_interface().unwrap();
    let mut batch = SendBatch::new(1);
    let mut sending = batch.start();
    sending.message(MessageHead {
        destination,
        segment: sender.can_segment().then_some(4),
        ecn: 1,
    });
    sending.piece(b"eightbyt");
    sending.send(&sender, 0).unwrap();
    let mut received = ReceiveBatch::new(2, 64);
    assert!(receive(&mut received, &receiver) >= 1);
    let info = received.datagram(0);
    // The first interface of a network namespace is its loopback.
    assert_eq!((info.interface, info.tos), (Some(1), 1));
}

#[test]
fn sockets_that_only_send_queue_nothing() {
    let source = Ipv4Addr::LOCALHOST;
    let sender = UdpSocket::sender(source).unwrap();
    let path_mtu = PathMtuSocket::new(source).unwrap();
    let other = std::net::UdpSocket::bind((source, 0)).unwrap();
    for socket in [&sender, &path_mtu.0] {
        let address = socket.local_address().unwrap();
        for _ in 0..3 {
            other.send_to(b"junk", address).unwrap();
            other.send_to(&[], address).unwrap();
        }
        let mut batch = ReceiveBatch::new(8, 64);
        let received = batch.receive(socket, usize::MAX);
        assert_eq!(received.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(socket.drops(), 6);
    }
    // They can still send, and query the path MTU.
    let address = other.local_addr().unwrap();
    let std::net::SocketAddr::V4(address) = address else {
        panic!("{address}")
    };
    assert!(path_mtu.get(address).unwrap() > 0);
}

#[test]
fn garbage_control_bytes_end_the_walk() {
    for length in 0..CONTROL_LEN {
        let bytes = [0xff; CONTROL_LEN];
        assert_eq!(control_messages(&bytes[..length]).count(), 0);
        let zeros = [0; CONTROL_LEN];
        assert_eq!(control_messages(&zeros[..length]).count(), 0);
    }
}
