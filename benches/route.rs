//! Route lookups: one lease, 256 and 65,536, destinations random over all leases.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddrV4};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ipnet::Ipv4Net;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use uvxlan::route::peer::{PeerId, RemoteVtep};
use uvxlan::route::table::RouteTable;
use uvxlan::wire::MacAddr;

/// Destinations of one iteration.
const LOOKUPS: usize = 1024;

fn network() -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 8).expect("a valid prefix")
}

fn subnet(number: u32) -> Ipv4Net {
    let address = network().network().to_bits() + (number << 8);
    Ipv4Net::new(Ipv4Addr::from_bits(address), 24).expect("a valid prefix")
}

fn peer(number: u32) -> Option<RemoteVtep> {
    let address = Ipv4Addr::from_bits(0xac10_0000 + number);
    let [_, _, a, b] = number.to_be_bytes();
    let mac = MacAddr([2, 0, 0, 0, a, b]);
    RemoteVtep::new(SocketAddrV4::new(address, 8472), mac, PeerId(number))
}

fn table(leases: u32) -> RouteTable {
    let changes = (0..leases).map(|number| (subnet(number), peer(number)));
    RouteTable::empty(network(), 24).with(changes)
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("route/lookup");
    group.throughput(Throughput::Elements(LOOKUPS as u64));
    for leases in [1u32, 256, 65_536] {
        let table = table(leases);
        let mut rng = StdRng::seed_from_u64(1);
        let destinations: Vec<Ipv4Addr> = (0..LOOKUPS)
            .map(|_| {
                let lease = rng.random_range(0..leases);
                Ipv4Addr::from_bits(subnet(lease).network().to_bits() | rng.random_range(1..255u32))
            })
            .collect();
        group.bench_with_input(BenchmarkId::from_parameter(leases), &table, |b, table| {
            b.iter(|| {
                for destination in &destinations {
                    black_box(table.lookup(black_box(*destination)));
                }
            });
        });
    }
    group.finish();
}

fn change(c: &mut Criterion) {
    let mut group = c.benchmark_group("route/change_one");
    for leases in [1u32, 256, 65_536] {
        let table = table(leases);
        group.bench_with_input(BenchmarkId::from_parameter(leases), &table, |b, table| {
            b.iter(|| table.with([(subnet(leases / 2), peer(9))]));
        });
    }
    group.finish();
}

criterion_group!(benches, lookup, change);
criterion_main!(benches);
