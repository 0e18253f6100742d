//! Large packets into segments and back, beside a copy of the same bytes as the limit, and a
//! whole tick of the packet loop over memory: segment, encapsulate, plan, check, merge.
//!
//! `cargo bench --bench offload`

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddrV4};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use uvxlan::dataplane::checksum;
use uvxlan::dataplane::inbound::header_checks::{self, LocalVtep};
use uvxlan::dataplane::outbound::batch::{self, MessageKey, Span};
use uvxlan::offload::coalesce::{Coalescer, PacketRef, Policy};
use uvxlan::offload::segment::SegmentPlan;
use uvxlan::wire::vnet_hdr::{self, VnetHdr};
use uvxlan::wire::vxlan::{ENCAP_LEN, EncapTemplate};
use uvxlan::wire::{MacAddr, Vni};

const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// MTU of the overlay.
const MTU: usize = 1450;
/// IPv4 and TCP header with timestamps.
const TCP_HEADER: usize = 52;
const UDP_HEADER: usize = 28;

/// A super-packet as a TUN device hands it over.
struct Super {
    name: &'static str,
    vnet: VnetHdr,
    packet: Vec<u8>,
}

fn tcp() -> Super {
    let mss = MTU - TCP_HEADER;
    let payload = vec![0x5a; mss * 45];
    let mut packet = Vec::new();
    PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 1, 2], 63)
        .tcp(40_000, 5201, 1, 502)
        .ack(1)
        .options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
        .expect("twelve bytes of options")
        .write(&mut packet, &payload)
        .expect("a packet");
    Super {
        name: "tcp",
        vnet: vnet(vnet_hdr::GSO_TCPV4, TCP_HEADER, mss, 16),
        packet,
    }
}

fn udp(name: &'static str, payload_len: usize, count: usize) -> Super {
    let mut packet = Vec::new();
    PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 1, 2], 63)
        .udp(40_000, 5201)
        .write(&mut packet, &vec![0x5a; payload_len * count])
        .expect("a packet");
    Super {
        name,
        vnet: vnet(vnet_hdr::GSO_UDP_L4, UDP_HEADER, payload_len, 6),
        packet,
    }
}

fn vnet(gso_type: u8, header_len: usize, gso_size: usize, csum_offset: u16) -> VnetHdr {
    VnetHdr {
        flags: vnet_hdr::F_NEEDS_CSUM,
        gso_type,
        hdr_len: header_len as u16,
        gso_size: gso_size as u16,
        csum_start: 20,
        csum_offset,
    }
}

fn supers() -> [Super; 3] {
    [tcp(), udp("udp-1400", 1400, 45), udp("udp-64", 64, 64)]
}

/// The segments, each behind its encapsulation, one after the other.
fn frames(of: &Super) -> (Vec<u8>, Vec<PacketRef>) {
    let plan = SegmentPlan::new(&of.vnet, &of.packet).expect("a sound super-packet");
    let encapsulation = EncapTemplate::ipv4(Vni::DEFAULT, OWN).towards(PEER);
    let (mut arena, mut places) = (Vec::new(), Vec::new());
    for number in 0..plan.count() {
        let mut header = [0; 120];
        let payload = plan
            .write_header(number, &mut header, checksum::checksummer())
            .expect("room for the header");
        arena.extend_from_slice(&encapsulation);
        let offset = arena.len() as u32;
        arena.extend_from_slice(&header[..plan.header_len()]);
        arena.extend_from_slice(&of.packet[payload]);
        places.push(PacketRef {
            offset,
            len: arena.len() as u32 - offset,
        });
    }
    (arena, places)
}

fn segment(c: &mut Criterion) {
    for of in supers() {
        let mut group = c.benchmark_group(format!("offload/segment/{}", of.name));
        group.throughput(Throughput::Bytes(of.packet.len() as u64));
        let mut header = [0; 120];
        group.bench_function("segment", |b| {
            b.iter(|| {
                let Ok(plan) = SegmentPlan::new(&of.vnet, black_box(&of.packet)) else {
                    return;
                };
                for number in 0..plan.count() {
                    black_box(
                        plan.write_header(number, &mut header, checksum::checksummer())
                            .ok(),
                    );
                }
            });
        });
        memcpy(&mut group, &of.packet);
        group.finish();
    }
}

fn coalesce(c: &mut Criterion) {
    for of in supers() {
        let (arena, places) = frames(&of);
        let mut group = c.benchmark_group(format!("offload/coalesce/{}", of.name));
        group.throughput(Throughput::Bytes(of.packet.len() as u64));
        let mut coalescer = Coalescer::new(Policy::new(MTU, checksum::checksummer()));
        group.bench_function("coalesce", |b| {
            b.iter(|| {
                coalescer.clear();
                for place in &places {
                    let _ = coalescer.push(black_box(&arena), *place);
                }
                for write in coalescer.writes(&arena) {
                    black_box(write.pieces().count());
                }
            });
        });
        memcpy(&mut group, &of.packet);
        group.finish();
    }
}

/// Out and in again: what a worker does itself for a large packet, without system calls.
fn tick(c: &mut Criterion) {
    let vtep = LocalVtep {
        vni: Vni::DEFAULT,
        mac: PEER,
    };
    let key = MessageKey {
        destination: SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 8472),
        bucket: 0,
        ecn: 0,
    };
    for of in supers() {
        let (arena, places) = frames(&of);
        let mut group = c.benchmark_group(format!("offload/tick/{}", of.name));
        group.throughput(Throughput::Elements(places.len() as u64));
        let mut coalescer = Coalescer::new(Policy::new(MTU, checksum::checksummer()));
        let mut plan = batch::SendPlan::new(64);
        let mut heads = vec![0; 16 * 1024];
        let template = EncapTemplate::ipv4(Vni::DEFAULT, OWN);
        group.bench_function("tick", |b| {
            b.iter(|| {
                plan.clear();
                let Ok(cut) = SegmentPlan::new(&of.vnet, black_box(&of.packet)) else {
                    return;
                };
                let block = ENCAP_LEN + cut.header_len();
                let encapsulation = template.towards(PEER);
                for number in 0..cut.count() {
                    let start = number * block;
                    let (encap, header) = heads[start..start + block].split_at_mut(ENCAP_LEN);
                    encap.copy_from_slice(&encapsulation);
                    let Ok(payload) = cut.write_header(number, header, checksum::checksummer())
                    else {
                        return;
                    };
                    let head = Span {
                        start: start as u32,
                        len: block as u32,
                    };
                    let payload = Span {
                        start: payload.start as u32,
                        len: payload.len() as u32,
                    };
                    plan.push(key, head, payload);
                }
                black_box(plan.messages().len());
                coalescer.clear();
                for place in &places {
                    let range = place.range();
                    let frame = &arena[range.start - ENCAP_LEN..range.end];
                    if black_box(header_checks::check_frame(&vtep, frame)).is_ok() {
                        let _ = coalescer.push(&arena, *place);
                    }
                }
                black_box(coalescer.writes(&arena).count());
            });
        });
        group.finish();
    }
}

fn memcpy(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    bytes: &[u8],
) {
    let mut copy = vec![0u8; bytes.len()];
    group.bench_function("memcpy", |b| {
        b.iter(|| black_box(&mut copy[..]).copy_from_slice(black_box(bytes)));
    });
}

criterion_group!(benches, segment, coalesce, tick);
criterion_main!(benches);
