//! A cluster of three that loses one member, and then its quorum.

use std::time::Duration;

use super::lab::{Lab, losing_nothing};

use crate::support::need;
use crate::support::nodes::possible;

#[test]
fn a_cluster_loses_members_and_its_quorum_and_no_packet_is_lost() {
    need!(possible(&["etcd", "etcdctl"]));
    let mut lab = Lab::with_config(3);
    let nodes = lab.nodes(&[lab.endpoints(), "--lease-ttl=60".into()]);
    let before = lab.leases();
    losing_nothing(&nodes, || {
        // The member that the daemons talk to is among those that stop.
        for gone in 0..3 {
            lab.members[gone].kill();
            lab.news_arrive(&nodes[0]);
            lab.news_arrive(&nodes[1]);
            lab.members[gone].start();
            lab.wait();
        }
        lab.members[0].kill();
        lab.members[1].kill();
        std::thread::sleep(Duration::from_secs(5));
        lab.members[0].start();
        lab.members[1].start();
        lab.wait();
        lab.news_arrive(&nodes[0]);
        lab.news_arrive(&nodes[1]);
    });
    assert_eq!(lab.leases(), before, "no lease was lost or duplicated");
}
