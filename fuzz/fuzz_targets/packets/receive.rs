//! The whole inbound path of a packet thread: datagrams of peers and unknown senders arrive at
//! a real socket, are checked, decapsulated and merged, and are written to a file in place of
//! the device.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::AtomicU16;

use libfuzzer_sys::fuzz_target;
use uvxlan::dataplane::counters::{Counter, Counters, Kind, Totals};
use uvxlan::dataplane::inbound::decap::Decap;
use uvxlan::dataplane::inbound::deliver::Deliverer;
use uvxlan::dataplane::inbound::header_checks::LocalVtep;
use uvxlan::dataplane::ingress_policy::{Enforcement, IngressPolicy};
use uvxlan::dataplane::peer_counters::PeerCounters;
use uvxlan::dataplane::tap::Taps;
use uvxlan::dataplane::{Options, Tuning};
use uvxlan::offload::segment::SegmentPlan;
use uvxlan::route::peer::{PeerId, RemoteVtep};
use uvxlan::route::publish::Routes;
use uvxlan::route::table::RouteTable;
use uvxlan::sys::tun::{TunOffload, TunQueue};
use uvxlan::sys::udp::{MessageHead, SendBatch, UdpSocket};
use uvxlan::wire::checksum::{Checksummer, Sum};
use uvxlan::wire::ipv4::Packet;
use uvxlan::wire::vnet_hdr::{self, VnetHdr};
use uvxlan::wire::vxlan::{ENCAP_LEN, EncapTemplate};
use uvxlan::wire::{MacAddr, Vni};

const OWN_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PEER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// Two peers, a sender that is allowed without a lease, and an unknown one.
const SENDERS: [Ipv4Addr; 4] = [
    Ipv4Addr::new(127, 0, 0, 1),
    Ipv4Addr::new(127, 0, 0, 2),
    Ipv4Addr::new(127, 0, 3, 1),
    Ipv4Addr::new(127, 0, 0, 9),
];
const UNKNOWN: usize = 3;
const OWN_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
const MTU: u16 = 1450;

fn net(text: &str) -> ipnet::Ipv4Net {
    text.parse().expect("a network")
}

fn policy() -> IngressPolicy {
    let policy = IngressPolicy {
        forward_extra: vec![net("10.96.0.0/12")],
        allow_peers: vec![net("127.0.3.0/24")],
        ..IngressPolicy::new(Enforcement::Enforce, net("10.5.0.0/16"), net("10.5.1.0/24"))
    };
    policy.own.set([OWN_ADDRESS]);
    policy
}

/// One inbound path, used for all inputs.
struct Inbound {
    decap: Decap,
    counters: Arc<Counters>,
    written: File,
    destination: SocketAddrV4,
    vnet_hdr: bool,
}

impl Inbound {
    fn new(vnet_hdr: bool) -> Self {
        let receiver = UdpSocket::receiver(SocketAddrV4::new(SENDERS[0], 0)).expect("a socket");
        receiver.enable_gro();
        let destination = receiver.local_address().expect("bound");
        let written = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile());
        let written = written.expect("a file");
        let counters = Arc::new(Counters::default());
        let peer = |last, id| {
            let endpoint = SocketAddrV4::new(SENDERS[id as usize], 8472);
            RemoteVtep::new(endpoint, MacAddr([2, 0, 0, 0, 0, last]), PeerId(id))
        };
        let table = RouteTable::empty(net("10.5.0.0/16"), 24).with([
            (net("10.5.2.0/24"), peer(2, 0)),
            (net("10.5.3.0/24"), peer(3, 1)),
        ]);
        let options = Options {
            vtep: LocalVtep {
                vni: Vni::DEFAULT,
                mac: OWN_MAC,
            },
            mtu: MTU,
            source: SENDERS[0],
            receive: destination,
            routes: Routes::new(table),
            ingress_policy: policy(),
            tuning: Tuning::default(),
            taps: Taps::default(),
            probes: None,
        };
        let decap = Decap::new(
            Arc::new(receiver),
            &options,
            Deliverer::new(
                Arc::new(TunQueue::from(written.try_clone().expect("a descriptor"))),
                vnet_hdr,
                TunOffload::TcpUdp,
                Arc::new(AtomicU16::new(MTU)),
                Checksummer::PORTABLE,
                Arc::clone(&counters),
            ),
            Arc::clone(&counters),
            Arc::new(PeerCounters::default()),
        );
        Self {
            decap,
            counters,
            written,
            destination,
            vnet_hdr,
        }
    }

    /// All that was written, one packet behind the other.
    fn take(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.written.rewind().expect("a file");
        self.written.read_to_end(&mut bytes).expect("a file");
        self.written.set_len(0).expect("a file");
        self.written.rewind().expect("a file");
        bytes
    }
}

struct Bench {
    senders: [UdpSocket; 4],
    batch: SendBatch,
    paths: [Inbound; 2],
}

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(Bench {
        senders: SENDERS.map(|address| UdpSocket::sender(address).expect("a socket")),
        batch: SendBatch::new(1),
        paths: [false, true].map(Inbound::new),
    });
}

/// What goes out as one message.
struct Datagram {
    sender: usize,
    ecn: u8,
    segment: Option<u16>,
    bytes: Vec<u8>,
}

/// Up to 48 datagrams: a byte that says who sends, with which ECN and whether what follows is
/// put right where random bytes never would be, a length of two bytes, the bytes.
fn datagrams(mut bytes: &[u8]) -> Vec<Datagram> {
    let mut found: Vec<Datagram> = Vec::new();
    while let [how, high, low, rest @ ..] = bytes {
        if found.len() == 48 {
            break;
        }
        let length = usize::from(u16::from_be_bytes([*high, *low]) % 3000);
        let length = length.min(rest.len());
        let (this, behind) = rest.split_at(length);
        bytes = behind;
        let sender = usize::from(how & 3);
        let repeats = how & 0x40 != 0;
        let mut payload = match found.last() {
            // The one before once more, with its first bytes changed: a flow goes on.
            Some(last) if repeats => {
                let mut again = last.bytes.clone();
                for (at, byte) in this.iter().take(8).enumerate() {
                    if let Some(place) = again.get_mut(ENCAP_LEN + 20 + 4 + at) {
                        *place = place.wrapping_add(*byte);
                    }
                }
                again
            }
            _ => this.to_vec(),
        };
        if how & 0x10 != 0 {
            payload = encapsulated(&payload);
        }
        if how & 0x20 != 0 {
            make_right(&mut payload, sender);
        }
        found.push(Datagram {
            sender,
            ecn: how >> 2 & 3,
            // Cut by the kernel into equal parts, which may be joined again.
            segment: (how & 0x80 != 0).then(|| (payload.len() / 2 + 1).max(24) as u16),
            bytes: payload,
        });
    }
    found
}

fn encapsulated(packet: &[u8]) -> Vec<u8> {
    let head = EncapTemplate::ipv4(Vni::DEFAULT, PEER_MAC).towards(OWN_MAC);
    [head.as_slice(), packet].concat()
}

/// Addresses that belong, lengths that fit, and right checksums of IP and transport.
fn make_right(frame: &mut [u8], sender: usize) {
    let Some(packet) = frame.get_mut(ENCAP_LEN..).filter(|it| it.len() >= 20) else {
        return;
    };
    packet[0] = 0x45;
    let total = packet.len() as u16;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[12..16].copy_from_slice(&[10, 5, 2 + (sender as u8 & 1), 7]);
    packet[16..20].copy_from_slice(&[10, 5, 1, 9]);
    packet[10..12].fill(0);
    let check = Sum::of(&packet[..20]).finish();
    packet[10..12].copy_from_slice(&check);
    let place = match packet[9] {
        6 if packet.len() >= 40 => 36,
        17 if packet.len() >= 28 => {
            packet[24..26].copy_from_slice(&(total - 20).to_be_bytes());
            26
        }
        _ => return,
    };
    packet[place..place + 2].fill(0);
    let pseudo = Sum::of(&packet[12..20]) + Sum::of_u16(u16::from(packet[9]));
    let sum = pseudo + Sum::of_u16(total - 20) + Sum::of(&packet[20..]);
    packet[place..place + 2].copy_from_slice(&sum.finish());
}

fuzz_target!(|bytes: &[u8]| {
    let datagrams = datagrams(bytes);
    BENCH.with_borrow_mut(|bench| {
        for path in &mut bench.paths {
            let before = Totals::of([&*path.counters]);
            for datagram in &datagrams {
                let mut sending = bench.batch.start();
                sending.message(MessageHead {
                    destination: path.destination,
                    segment: datagram.segment,
                    ecn: datagram.ecn,
                });
                sending.piece(&datagram.bytes);
                // Refused only where the kernel cannot cut it so.
                let _ = sending.send(&bench.senders[datagram.sender], 0);
            }
            path.decap.drain().expect("a file does not go away");
            let after = Totals::of([&*path.counters]);
            let rise = |counter| after.get(counter) - before.get(counter);
            let drops = after.sum(Kind::DropIn) - before.sum(Kind::DropIn);
            let delivered = rise(Counter::Delivered);
            assert_eq!(rise(Counter::UdpRead), delivered + drops, "{after}");
            assert_eq!(rise(Counter::InWriteError), 0, "{after}");
            if datagrams.iter().all(|it| it.sender == UNKNOWN) {
                assert_eq!(rise(Counter::UdpRead), rise(Counter::InUnknownPeer));
            }
            let written = path.take();
            let packets = if path.vnet_hdr {
                behind_headers(&written)
            } else {
                plain(&written)
            };
            // What a kernel peer on this machine left uncut, known by its unfinished checksum,
            // counts as one.
            match rise(Counter::PartialChecksums) {
                0 => assert_eq!(packets, delivered, "{after}"),
                _ => assert!(packets >= delivered, "{packets}: {after}"),
            }
        }
    });
});

/// Packets that were written as they are; returns how many.
fn plain(mut written: &[u8]) -> u64 {
    let mut count = 0;
    while !written.is_empty() {
        let packet = Packet::new_checked(written).expect("whole packets");
        belongs(&packet);
        written = &written[packet.total_len()..];
        count += 1;
    }
    count
}

/// Packets behind virtio-net headers, merged ones among them; returns how many they are cut.
fn behind_headers(mut written: &[u8]) -> u64 {
    let mut count = 0;
    while let Some((header, rest)) = written.split_first_chunk::<{ vnet_hdr::LEN }>() {
        let header = VnetHdr::from_bytes(*header);
        let packet = Packet::new_checked(rest).expect("whole packets");
        belongs(&packet);
        count += match header.is_gso() {
            true => SegmentPlan::new(&header, packet.bytes())
                .expect("what is merged can be cut")
                .count() as u64,
            false => 1,
        };
        written = &rest[packet.total_len()..];
    }
    assert!(written.is_empty());
    count
}

/// The rules for what may come in, once more.
fn belongs(packet: &Packet<'_>) {
    let (source, destination) = (packet.source(), packet.destination());
    assert!(packet.is_header_undamaged());
    let own = destination.octets()[..3] == [10, 5, 1] && destination.octets()[3] != 255;
    let extra = destination.octets()[0] == 10 && (96..112).contains(&destination.octets()[1]);
    assert!(own || extra, "to {destination}");
    assert!(
        !source.is_loopback()
            && !source.is_multicast()
            && !source.is_broadcast()
            && !source.is_link_local()
            && source.octets()[0] != 0
            && source.octets()[0] < 224,
        "from {source}"
    );
    assert_ne!(source.octets()[..3], [10, 5, 1], "from our own subnet");
    assert_ne!(source, OWN_ADDRESS);
    let options = &packet.bytes()[20..packet.header_len()];
    if let Some(kind) = options.iter().find(|kind| **kind != 1) {
        assert!(!matches!(kind, 131 | 137), "a source route");
    }
}
