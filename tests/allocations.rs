//! In steady state the packet loop allocates no memory. A separate binary, since the allocator
//! counts for the whole process.

mod support;

use std::alloc::System;
use std::time::Duration;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use uvxlan::dataplane::counters::Counter;
use uvxlan::testbed::traffic::{StreamRequest, tcp_streams};

use crate::support::need;
use crate::support::wire::{Overlay, possible};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn a_steady_state_allocates_nothing() {
    need!(possible());
    let overlay = Overlay::new();
    let request = StreamRequest {
        address: overlay.in_kernel.address(),
        streams: 2,
        duration: Duration::from_millis(2000),
    };
    let (from, to) = (overlay.in_ours.namespace(), overlay.in_kernel.namespace());
    std::thread::scope(|scope| {
        let streams = scope.spawn(|| tcp_streams(from, to, request).unwrap());
        std::thread::sleep(Duration::from_millis(900));
        let before = overlay.dataplane.totals().get(Counter::Sent);
        let region = Region::new(ALLOCATOR);
        std::thread::sleep(Duration::from_millis(600));
        let change = region.change();
        let passed = overlay.dataplane.totals().get(Counter::Sent) - before;
        assert_eq!(
            (change.allocations, change.reallocations),
            (0, 0),
            "{passed} packets passed"
        );
        assert!(passed > 1000, "{passed} packets passed");
        assert!(streams.join().unwrap().bytes > 0);
    });
}
