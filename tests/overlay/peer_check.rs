//! What a running daemon reports about packets that the peer check drops, and about those for
//! which there was no buffer.

use std::net::{SocketAddrV4, UdpSocket};

use uvxlan::sys::udp::{MessageHead, SendBatch, UdpSocket as Batched};
use uvxlan::wire::vxlan::DEFAULT_PORT;

use crate::support::directory::NodePair;
use crate::support::need;
use crate::support::nodes::{counter, eventually, possible, spoofed};

#[test]
fn in_log_mode_the_log_names_sender_and_rule_and_not_each_packet() {
    need!(possible(&[]));
    let mut pair = NodePair::start(2, &["--peer-check=log", "--workers=1"]);
    let (a, b, store) = (&pair.a, &mut pair.b, &pair.store);
    let open = || Batched::sender(a.host.address()).unwrap();
    let socket = a.host.namespace().run(open).unwrap();
    let frames = [
        spoofed(b, &store.path(), [10, 5, 254, 9]),
        spoofed(b, &store.path(), [127, 0, 0, 1]),
    ];
    let mut batch = SendBatch::new(2);
    for _ in 0..200 {
        let mut sending = batch.start();
        for frame in &frames {
            sending.message(MessageHead {
                destination: SocketAddrV4::new(b.host.address(), DEFAULT_PORT),
                segment: None,
                ecn: 0,
            });
            sending.piece(frame);
        }
        sending.send(&socket, 0).unwrap();
    }
    let told = |log: &str, rule: &str| -> Vec<String> {
        let lines = log.lines().filter(|line| line.contains("peer_check\""));
        let lines = lines.filter(|line| line.contains(rule));
        lines.map(str::to_owned).collect()
    };
    eventually("the log names both rules", || {
        let log = b.log();
        ["in_foreign_source", "in_martian"]
            .iter()
            .all(|rule| !told(&log, rule).is_empty())
    });
    eventually("all packets are read", || a.reaches(b));
    let log = b.stop_daemon();
    let peer = a.host.address().to_string();
    for (rule, source) in [
        ("in_foreign_source", "10.5.254.9"),
        ("in_martian", "127.0.0.1"),
    ] {
        let lines = told(&log, rule);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains(&peer) && lines[0].contains(source),
            "{lines:?}"
        );
    }
    assert_eq!(counter(&log, "passed_unchecked"), 400, "{log}");
    assert_eq!(counter(&log, "in_foreign_source"), 0, "{log}");
}

#[test]
fn packets_that_find_no_room_in_the_device_are_counted() {
    need!(possible(&["ip"]));
    let mut pair = NodePair::start(2, &["--workers=1"]);
    let (a, b) = (&pair.a, &mut pair.b);
    b.change(&["link", "set", "flannel.1", "txqueuelen", "1"]);
    let open = || UdpSocket::bind((b.container().address(), 0)).unwrap();
    let socket = b.container().namespace().run(open).unwrap();
    let dropped = || -> u64 {
        let text = b.output("ip", &["-s", "-j", "link", "show", "flannel.1"]);
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        found[0]["stats64"]["tx"]["dropped"].as_u64().unwrap()
    };
    eventually("the queue of one packet overflows", || {
        for _ in 0..2000 {
            let _ = socket.send_to(&[1; 64], (a.container().address(), 9));
        }
        dropped() > 0
    });
    let expected = dropped();
    let log = b.stop_daemon();
    assert_eq!(counter(&log, "tun_overflow"), expected, "{log}");
}
