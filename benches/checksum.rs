//! The Internet checksum beside a copy of the same bytes.
//!
//! `cargo bench --bench checksum`

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use uvxlan::dataplane::checksum;
use uvxlan::wire::checksum::Checksummer;

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for len in [64usize, 1500, 65536] {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
        // Not at the same place of its page as the source, which would slow the copy down.
        let mut copy = vec![0u8; len + 320];
        group.throughput(Throughput::Bytes(len as u64));
        for (name, sum) in [
            ("portable", Checksummer::PORTABLE),
            ("best", checksum::checksummer()),
        ] {
            group.bench_with_input(BenchmarkId::new(name, len), &bytes, |b, bytes| {
                b.iter(|| sum.sum(black_box(bytes)).fold());
            });
        }
        group.bench_with_input(BenchmarkId::new("memcpy", len), &bytes, |b, bytes| {
            b.iter(|| black_box(&mut copy[320..]).copy_from_slice(black_box(bytes)));
        });
    }
    group.finish();
}

criterion_group!(benches, checksum);
criterion_main!(benches);
