//! A daemon in a large cluster with many changes (T27): every lease has a route, every change is
//! followed without load on etcd, and a ping at the same time loses nothing. For speed, see
//! `cargo bench --bench lease`.

use crate::alone::alone;
use crate::support::need;
use crate::support::nodes::{self, losing_nothing, possible};
use crate::support::scale::{Scale, memory};

const LEASES: u32 = 2000;
const RATE: u32 = 300;
const SECONDS: u32 = 6;

#[test]
fn thousands_of_leases_that_come_go_and_change_are_followed_and_no_packet_is_lost() {
    need!(possible(&["etcd", "etcdctl"]));
    let _machine = alone();
    let scale = Scale::new(LEASES);
    let nodes = [scale.start(0), scale.start(1)];
    scale.routes_are_the_stores(&nodes[0]);
    nodes::eventually("the containers reach each other", || {
        nodes[0].reaches(&nodes[1]) && nodes[1].reaches(&nodes[0])
    });
    let churn = losing_nothing(&nodes, || scale.churn(&nodes[0], RATE, SECONDS));
    for node in &nodes {
        scale.routes_are_the_stores(node);
    }
    assert!(
        churn.delays.len() as u32 > churn.events / 2,
        "route changes were measured"
    );
    // Two daemons, whose requests do not grow with the number of events.
    let (requests, events) = (churn.requests, churn.events);
    assert!(
        requests * 20 <= u64::from(events),
        "{requests} requests for {events} events"
    );
    let (_, most) = memory(nodes[0].daemon.as_ref().unwrap().pid());
    assert!((1..64 * 1024).contains(&most), "{most} KiB");
    // Its own changes did not cause checks of the whole host: none was taken for a foreign one.
    let log = nodes[0].log();
    assert!(!log.contains("routes_repaired"), "{log}");
}
