use super::*;
use crate::wire::vnet_hdr::{GSO_TCPV4, VnetHdr};
use crate::wire::vxlan::EncapTemplate;
use crate::wire::{MacAddr, Vni};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

/// A way in whose device is a socket that keeps message boundaries, as a TUN queue does.
struct Bench {
    decap: Decap,
    device: UnixDatagram,
    peer: std::net::UdpSocket,
    counters: Arc<Counters>,
}

impl Bench {
    fn new(vnet_hdr: bool) -> Self {
        let socket = UdpSocket::receiver(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.connect(socket.local_address().unwrap()).unwrap();
        let (ours, device) = UnixDatagram::pair().unwrap();
        device
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let counters = Arc::new(Counters::default());
        let vtep = Vtep {
            vni: Vni::DEFAULT,
            mac: OWN,
        };
        let queue = Arc::new(TunQueue::adopt(ours.into()));
        let decap = Decap::new(socket, queue, vnet_hdr, vtep, 1450, Arc::clone(&counters));
        Self {
            decap,
            device,
            peer,
            counters,
        }
    }

    fn receive(&mut self, packet: &[u8]) {
        let frame = [
            &EncapTemplate::ipv4(Vni::DEFAULT, PEER).towards(OWN)[..],
            packet,
        ]
        .concat();
        self.peer.send(&frame).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.decap.drain().unwrap() {
            assert!(Instant::now() < deadline, "nothing came");
        }
    }

    fn written(&self) -> Vec<u8> {
        let mut bytes = vec![0; 70_000];
        let len = self.device.recv(&mut bytes).unwrap();
        bytes.truncate(len);
        bytes
    }
}

/// A TCP packet with a true checksum, and the same one as a kernel peer leaves it.
fn tcp(len: usize) -> (Vec<u8>, Vec<u8>) {
    let mut complete = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 3, 5, 2], [10, 3, 6, 2], 63)
        .tcp(40_000, 80, 7, 1024)
        .write(&mut complete, &vec![7; len])
        .unwrap();
    let segment_len = u16::try_from(complete.len() - 20).unwrap();
    let mut partial = complete.clone();
    let pseudo = crate::wire::checksum::pseudo_v4([10, 3, 5, 2], [10, 3, 6, 2], 6, segment_len);
    partial[36..38].copy_from_slice(&pseudo.fold());
    (complete, partial)
}

#[test]
fn a_complete_packet_gets_an_empty_header() {
    let (complete, _) = tcp(100);
    let mut bench = Bench::new(true);
    bench.receive(&complete);
    assert_eq!(
        bench.written(),
        [&[0; VNET_HDR_LEN][..], &complete].concat()
    );
    assert_eq!(bench.counters.get(Counter::Delivered), 1);
}

#[test]
fn a_partial_checksum_is_named_in_the_header_or_finished_without_one() {
    let (complete, partial) = tcp(100);
    let mut with = Bench::new(true);
    with.receive(&partial);
    let written = with.written();
    let hdr = VnetHdr::parse(&written).unwrap();
    assert!(hdr.needs_csum() && !hdr.is_gso(), "{hdr:?}");
    assert_eq!(written[VNET_HDR_LEN..], partial);

    let mut without = Bench::new(false);
    without.receive(&partial);
    assert_eq!(without.written(), complete);
    assert_eq!(without.counters.get(Counter::PartialChecksums), 1);
}

#[test]
fn a_super_packet_is_written_whole_and_counts_as_its_segments() {
    let (_, partial) = tcp(60_000);
    let mut bench = Bench::new(true);
    bench.receive(&partial);
    let written = bench.written();
    let hdr = VnetHdr::parse(&written).unwrap();
    assert_eq!((hdr.gso_type, hdr.gso_size), (GSO_TCPV4, 1410));
    assert_eq!(written[VNET_HDR_LEN..], partial);
    let segments = 60_000u64.div_ceil(1410);
    let counted = [Counter::UdpRead, Counter::Delivered, Counter::SuperPackets];
    let counted = counted.map(|counter| bench.counters.get(counter));
    assert_eq!(counted, [segments, segments, 1]);
}

#[test]
fn a_super_packet_that_cannot_be_named_is_dropped_by_name() {
    let (_, partial) = tcp(60_000);
    let mut bench = Bench::new(false);
    bench.receive(&partial);
    let segments = 60_000u64.div_ceil(1410);
    assert_eq!(bench.counters.get(Counter::UdpRead), segments);
    assert_eq!(bench.counters.get(Counter::InUnsegmented), segments);
}
