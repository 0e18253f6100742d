//! An underlay whose MTU has become too small for the overlay's.

use uvxlan::dataplane::counters::{Counter, Kind};
use uvxlan::testbed::traffic::{PingRequest, TransferRequest, ping, tcp_transfer};

use crate::support::need;
use crate::support::nodes::eventually;
use crate::support::wire::{MTU, Overlay, UNDERLAY, possible};

#[test]
fn senders_learn_what_fits_and_the_rest_is_fragmented() {
    need!(possible());
    let overlay = Overlay::new();
    for host in [overlay.our_host(), overlay.kernel_host()] {
        let lowered = host.node().netlink(async |netlink| {
            let below = netlink.expect_link(UNDERLAY).await?;
            netlink.set_mtu(below.index, 1400).await
        });
        lowered.unwrap();
    }
    let (from, to) = (&overlay.in_ours, &overlay.in_kernel);
    let request = TransferRequest::new(to.address(), 8 << 20);
    let report = tcp_transfer(from.namespace(), to.namespace(), request, |_| ()).unwrap();
    assert!(report.is_intact(), "{report:?}");

    let totals = overlay.dataplane.totals();
    assert!(totals.get(Counter::SegmentFallbacks) > 0, "{totals:?}");
    assert!(totals.get(Counter::IcmpSent) > 0, "{totals:?}");
    assert!(totals.get(Counter::OutTooBig) > 0, "{totals:?}");
    // The kernel behind the sender learned 1400 - 50, so large packets fit again.
    let refused = totals.get(Counter::SegmentFallbacks) + totals.get(Counter::OutTooBig) / 40;
    assert!(refused < 100, "{totals:?}");
    // Once the last packets have passed, each one is accounted for.
    eventually("read = sent + dropped", || {
        let totals = overlay.dataplane.totals();
        totals.get(Counter::TunRead) == totals.get(Counter::Sent) + totals.sum(Kind::DropOut)
    });

    // Packets without DF still arrive at full length.
    let longest = usize::from(MTU) - 28;
    let request = PingRequest {
        payload_len: longest,
        ..PingRequest::new(from.address())
    };
    let report = ping(to.namespace(), request).unwrap();
    assert!(report.is_complete(), "{report:?}");
}
