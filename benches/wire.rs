//! Encapsulation and decapsulation of one packet, without system calls: what a worker
//! does itself for each packet.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddrV4};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use uvxlan::dataplane::inbound::header_checks::{self, LocalVtep};
use uvxlan::dataplane::outbound::batch::{MessageKey, SendPlan, Span};
use uvxlan::route::peer::{PeerId, RemoteVtep};
use uvxlan::route::table::RouteTable;
use uvxlan::wire::MacAddr;
use uvxlan::wire::Vni;
use uvxlan::wire::flow;
use uvxlan::wire::ipv4::Packet;
use uvxlan::wire::vxlan::ecn;
use uvxlan::wire::vxlan::{ENCAP_LEN, EncapTemplate};

const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// Packets of one iteration, as in one drain of the packet loop.
const PACKETS: usize = 64;

/// A UDP packet of this length in all, behind room for its encapsulation.
fn frame(len: usize) -> Vec<u8> {
    let mut bytes = EncapTemplate::ipv4(Vni::DEFAULT, PEER)
        .towards(OWN)
        .to_vec();
    PacketBuilder::ipv4([10, 0, 1, 2], [10, 0, 0, 2], 63)
        .udp(40_000, 53)
        .write(&mut bytes, &vec![7; len - 28])
        .expect("a packet of this length");
    bytes
}

fn encap(c: &mut Criterion) {
    let mut group = c.benchmark_group("wire/encap");
    let peer = RemoteVtep::new(
        SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 8472),
        PEER,
        PeerId(0),
    );
    let network = "10.0.0.0/16".parse().expect("a prefix");
    let subnet = "10.0.0.0/24".parse().expect("a prefix");
    let routes = RouteTable::empty(network, 24).with([(subnet, peer)]);
    let template = EncapTemplate::ipv4(Vni::DEFAULT, OWN);
    for len in [64usize, 1450] {
        group.throughput(Throughput::Elements(PACKETS as u64));
        group.bench_with_input(BenchmarkId::from_parameter(len), &len, |b, len| {
            let mut buffer = frame(*len);
            let mut plan = SendPlan::new(64);
            b.iter(|| {
                for _ in 0..PACKETS {
                    let Ok(packet) = Packet::new_checked(black_box(&buffer[ENCAP_LEN..])) else {
                        return;
                    };
                    let Some(peer) = routes.lookup(packet.destination()) else {
                        return;
                    };
                    let key = MessageKey {
                        destination: peer.endpoint(),
                        bucket: flow::bucket(flow::hash(&packet), 8) as u16,
                        ecn: ecn::encapsulate(packet.tos()),
                    };
                    let header = template.towards(peer.vtep_mac());
                    buffer[..ENCAP_LEN].copy_from_slice(&header);
                    let span = Span {
                        start: 0,
                        len: buffer.len() as u32,
                    };
                    plan.push(key, Span::default(), span);
                }
                black_box(&plan);
                plan.clear();
            });
        });
    }
    group.finish();
}

fn decap(c: &mut Criterion) {
    let mut group = c.benchmark_group("wire/decap");
    let vtep = LocalVtep {
        vni: Vni::DEFAULT,
        mac: OWN,
    };
    for len in [64usize, 1450] {
        let bytes = frame(len);
        group.throughput(Throughput::Elements(PACKETS as u64));
        group.bench_with_input(BenchmarkId::from_parameter(len), &bytes, |b, bytes| {
            b.iter(|| {
                for _ in 0..PACKETS {
                    let packet = header_checks::check_frame(&vtep, black_box(bytes));
                    black_box(
                        packet
                            .map(|packet| ecn::decapsulate(0, packet.tos()))
                            .is_ok(),
                    );
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, encap, decap);
criterion_main!(benches);
