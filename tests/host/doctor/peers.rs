//! Peers that are down, reachable in one direction only, or behind a path with a smaller MTU.

use super::{Paused, lab, until_healthy};

use crate::support::need;
use crate::support::nodes::possible;

#[test]
fn faults_on_the_path_to_a_peer_are_named() {
    need!(possible(&["ip", "iptables"]));
    let lab = lab();
    until_healthy("a healthy pair", || lab.examine());

    // Large packets are lost: 1,400 bytes are 1,350 plus the encapsulation.
    let large = "iptables -I INPUT -p udp --dport 8472 -m length --length 1401:65535 -j DROP";
    lab.shell(&lab.b, large);
    let found = lab.examine();
    lab.shell(&lab.b, &large.replace("-I", "-D"));
    found.expect("path-mtu", "error", "at most 1350 bytes");
    let fix = found.get("path-mtu")["fix"].as_str().unwrap();
    assert!(fix.contains("\"MTU\": 1400"), "{fix}");
    until_healthy("after large packets pass again", || lab.examine());

    // Our packets do not arrive there, theirs arrive here.
    let all = "iptables -I INPUT -p udp --dport 8472 -j DROP";
    lab.shell(&lab.b, all);
    let found = lab.examine();
    lab.shell(&lab.b, &all.replace("-I", "-D"));
    found.expect("peers", "error", "one way only");
    until_healthy("after ours arrive again", || lab.examine());

    // Nothing arrives: the peer hangs.
    let paused = Paused::new(&lab.b);
    let found = lab.examine();
    drop(paused);
    found.expect("peers", "warning", "silent");
    until_healthy("after the peer is back", || lab.examine());

    // The route to the peer leads into the tunnel itself.
    lab.shell(&lab.a, "ip route add $PEER_IP/32 dev flannel.1; sleep 1");
    let found = lab.examine();
    lab.shell(&lab.a, "ip route del $PEER_IP/32 dev flannel.1");
    found.expect("peers", "error", "nothing is sent to");
    until_healthy("after the loop is gone", || lab.examine());
}
