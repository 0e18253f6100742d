//! The testbed without root: the process first becomes root in a user namespace.
//!
//! Without the test harness, since `unshare_user` fails in a process with several threads.

#[path = "support/skip.rs"]
mod skip;

use uvxlan::sys::netns::unshare_user;
use uvxlan::testbed::traffic::{PingRequest, ping};
use uvxlan::testbed::{Topology, available};

fn main() {
    if let Err(error) = unshare_user() {
        skip::skipped(format!("no user namespace here: {error}"));
        return;
    }
    available().expect("a process that is root in its user namespace can create a testbed");
    let topology = Topology::two_hosts().unwrap();
    let (a, b) = topology.pair().unwrap();
    let report = ping(a.namespace(), PingRequest::new(b.address())).unwrap();
    assert!(report.is_complete(), "{report:?}");
    println!("ok: two hosts answer each other without root");
}
