//! Packets of attackers in a capture: the filter agrees with the rules written a second time,
//! and the stream is one that a reader can walk.
#![no_main]

use std::net::{Ipv4Addr, SocketAddrV4};

use libfuzzer_sys::fuzz_target;
use uvxlan::capture::{Encoder, Names, pcapng};
use uvxlan::dataplane::counters::Counter;
use uvxlan::dataplane::tap::{CaptureFilter, Direction, Observation, ObservationPoint, Taps};
use uvxlan::wire::vxlan::ENCAP_LEN;

const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 5, 2, 7);

fuzz_target!(|bytes: &[u8]| {
    let [flags, snap_high, snap_low, rest @ ..] = bytes else {
        return;
    };
    let filter = CaptureFilter {
        inner: flags & 1 != 0,
        outer: flags & 2 != 0,
        peer: (flags & 4 != 0).then(|| (PEER, (flags & 8 != 0).then(subnet))),
        host: (flags & 16 != 0).then_some(HOST),
        dropped: flags & 32 != 0,
        snap_len: usize::from(u16::from_be_bytes([*snap_high, *snap_low])),
    };
    let taps = Taps::default();
    let tap = taps.open(filter);
    let observer = taps.observer();
    let names = Names {
        program: String::from_utf8_lossy(rest.get(..9).unwrap_or(rest)).into_owned(),
        device: "flannel.1".into(),
        interface: "eth0".into(),
        address: Ipv4Addr::new(192, 0, 2, 1),
    };
    let mut encoder = Encoder::new(names, filter.inner, filter.outer);
    let mut stream = Vec::new();
    encoder.begin(&mut stream);
    let (mut rest, mut packets) = (rest, 0);
    while let [how, port, length, behind @ ..] = rest {
        let length = (usize::from(*length) * 8).min(behind.len());
        let (packet, behind) = behind.split_at(length);
        rest = behind;
        let remote = match how & 1 {
            0 => PEER,
            _ => Ipv4Addr::new(203, 0, 113, *port),
        };
        let point = match how & 2 {
            0 => ObservationPoint::Inner,
            _ => ObservationPoint::Outer {
                remote: SocketAddrV4::new(remote, u16::from(*port)),
                port: 8472,
                tos: *port,
            },
        };
        let dropped = (how & 4 != 0).then(|| Counter::ALL[usize::from(*port) % Counter::ALL.len()]);
        // Out, the headers of a segment lie apart from its payload.
        let cut = if how & 8 != 0 {
            packet.len() * 3 / 4
        } else {
            packet.len()
        };
        let (one, other) = packet.split_at(cut);
        observer.report(&Observation {
            point,
            direction: if how & 16 != 0 {
                Direction::In
            } else {
                Direction::Out
            },
            pieces: [one, other],
            dropped,
        });
        let expected = wanted(
            &filter,
            point,
            if one.is_empty() { other } else { one },
            dropped,
        );
        let captured = tap.next();
        assert_eq!(captured.is_some(), expected, "{filter:?} {point:?}");
        if let Some(captured) = captured {
            assert_eq!(captured.bytes, packet[..packet.len().min(filter.snap_len)]);
            assert_eq!(captured.len, packet.len());
            encoder.packet(&mut stream, &captured);
            packets += 1;
        }
        assert!(tap.next().is_none());
    }
    encoder.end(&mut stream, u64::MAX, tap.missed());
    assert_eq!(tap.missed(), 0);
    walk(&stream, packets);
});

fn subnet() -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 5, 2, 0), 24)
}

/// The rules once more.
fn wanted(
    filter: &CaptureFilter,
    point: ObservationPoint,
    bytes: &[u8],
    dropped: Option<Counter>,
) -> bool {
    let (seen, skip, remote) = match point {
        ObservationPoint::Inner => (filter.inner, 0, None),
        ObservationPoint::Outer { remote, .. } => (filter.outer, ENCAP_LEN, Some(*remote.ip())),
    };
    let at = |place: usize| {
        let octets: [u8; 4] = bytes.get(skip + place..skip + place + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    // Both addresses, or none.
    let inner: Vec<_> = at(16)
        .and_then(|to| Some([at(12)?, to]))
        .into_iter()
        .flatten()
        .collect();
    let peer = filter.peer.is_none_or(|(address, subnet)| {
        remote == Some(address)
            || subnet.is_some_and(|subnet| inner.iter().any(|it| subnet.contains(it)))
    });
    seen && (!filter.dropped || dropped.is_some())
        && peer
        && filter.host.is_none_or(|host| inner.contains(&host))
}

/// Blocks of the right lengths, one behind the other, to the last byte.
fn walk(stream: &[u8], packets: u64) {
    let word = |at: usize| {
        let bytes: [u8; 4] = stream[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes) as usize
    };
    let (mut at, mut found) = (0, 0);
    while at < stream.len() {
        let (kind, length) = (word(at), word(at + 4));
        assert!(length >= 12 && length % 4 == 0, "block of {length} bytes");
        assert_eq!(
            word(at + length - 4),
            length,
            "the length stands at both ends"
        );
        // An enhanced packet block: captured and original length.
        if kind == 6 {
            let (captured, original) = (word(at + 20), word(at + 24));
            assert!(captured <= original && 32 + captured <= length);
            found += 1;
        }
        at += length;
    }
    assert_eq!(at, stream.len());
    assert_eq!(found, packets);
    if packets > 0 {
        assert_eq!(pcapng::totals(stream), Some((packets, 0)));
    }
}
