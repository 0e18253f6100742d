//! Between two daemons, over NICs of every class, with and without offloads.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use uvxlan::sys::netns::Namespace;
use uvxlan::testbed::traffic::{StreamRequest, TransferRequest, tcp_streams, tcp_transfer};
use uvxlan::testbed::{NicClass, Pair, available};

use super::tcp_counters::TcpCounters;
use crate::support::need;

const PROGRAM: &str = env!("CARGO_BIN_EXE_uvxlan");
/// The inner MSS with timestamps at an MTU of 1450.
const MSS: usize = 1398;

/// Bytes of a verified transfer; `make soak` asks for more.
fn transfer_len() -> u64 {
    std::env::var("UVXLAN_TRANSFER_MIB")
        .ok()
        .and_then(|text| text.parse::<u64>().ok())
        .unwrap_or(24)
        << 20
}

fn pair(folder: &Path, flags: &[&str]) -> Pair {
    Pair::uvxlan(Path::new(PROGRAM), folder, flags).unwrap()
}

fn assert_no_bad_checksum(pair: &Pair) {
    for container in &pair.containers {
        let counters = TcpCounters::read(container.namespace());
        assert_eq!(counters.checksum_errors, 0, "{counters:?}");
        assert!(counters.segments_out > 0, "TCP segments were sent");
    }
}

#[test]
fn transfers_arrive_intact_over_every_nic_with_and_without_offloads() {
    need!(available());
    let offloads = [
        "auto",
        "off",
        "auto,-send",
        "auto,-read",
        "auto,-write",
        "auto,-receive",
    ];
    std::thread::scope(|scope| {
        for some in offloads.chunks(3) {
            scope.spawn(move || some.iter().for_each(|offload| transfer_with(offload)));
        }
    });
}

/// Over every NIC, in both directions.
fn transfer_with(offload: &str) {
    let folder = tempfile::tempdir().unwrap();
    let flag = format!("--offload={offload}");
    let pair = pair(folder.path(), &[&flag]);
    let [a, b] = &pair.containers;
    for class in NicClass::ALL {
        pair.set_nic(class).unwrap();
        for (from, to) in [(a, b), (b, a)] {
            let request = TransferRequest {
                deadline: Duration::from_secs(300),
                ..TransferRequest::new(to.address(), transfer_len() / 4)
            };
            let report = tcp_transfer(from.namespace(), to.namespace(), request, |_| {}).unwrap();
            assert!(report.is_intact(), "{class}, {offload}: {report:?}");
        }
    }
    assert_no_bad_checksum(&pair);
}

/// Writes of 1, 2, 3, … bytes, each sent at once: last segments of every length.
fn send_tails(from: &Namespace, to: &Namespace, address: std::net::Ipv4Addr) {
    let listener = to
        .run(|| TcpListener::bind(SocketAddrV4::new(address, 0)).unwrap())
        .unwrap();
    let destination = listener.local_addr().unwrap();
    let mut sender = from
        .run(|| TcpStream::connect_timeout(&destination, Duration::from_secs(5)).unwrap())
        .unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    sender.set_nodelay(true).unwrap();
    for stream in [&sender, &receiver] {
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(20)))
            .unwrap();
    }
    let byte = |position: usize| (position * 7 + position / 251) as u8;
    let lengths = (1..=MSS).flat_map(|tail| [tail, 3 * MSS + tail]);
    let total: usize = lengths.clone().sum();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut position = 0;
            for length in lengths {
                let piece: Vec<u8> = (position..position + length).map(byte).collect();
                sender.write_all(&piece).unwrap();
                position += length;
            }
        });
        let mut position = 0;
        let mut buffer = vec![0; 65_536];
        while position < total {
            let length = receiver.read(&mut buffer).unwrap();
            assert!(length > 0, "the stream ended at {position} of {total}");
            for (offset, found) in buffer[..length].iter().enumerate() {
                assert_eq!(*found, byte(position + offset), "at {}", position + offset);
            }
            position += length;
        }
    });
}

#[test]
fn last_segments_of_every_length_arrive_intact() {
    need!(available());
    let folder = tempfile::tempdir().unwrap();
    let pair = pair(folder.path(), &[]);
    let [a, b] = &pair.containers;
    for class in [NicClass::Full, NicClass::None] {
        pair.set_nic(class).unwrap();
        send_tails(a.namespace(), b.namespace(), b.address());
    }
    assert_no_bad_checksum(&pair);
}

#[test]
fn four_streams_are_not_reordered() {
    need!(available());
    let folder = tempfile::tempdir().unwrap();
    let pair = pair(folder.path(), &["--workers=2"]);
    let [a, b] = &pair.containers;
    let request = StreamRequest {
        address: b.address(),
        streams: 4,
        duration: Duration::from_secs(2),
    };
    let report = tcp_streams(a.namespace(), b.namespace(), request).unwrap();
    assert!(report.bytes > 0);
    let sender = TcpCounters::read(a.namespace());
    let segments = report.bytes / MSS as u64;
    // Overflowing queues lose some, which is not reordering.
    println!("{segments} segments, {sender:?}");
    assert!(
        sender.reordered * 1000 <= segments,
        "{sender:?} of {segments}"
    );
}
