//! What a running daemon reports about packets that the peer check drops, and about those for
//! which there was no buffer.

use std::net::{SocketAddrV4, UdpSocket};
use std::path::Path;

use uvxlan::sys::udp::{MessageHead, SendBatch, UdpSocket as Batched};
use uvxlan::testbed::Topology;
use uvxlan::wire::vxlan::DEFAULT_PORT;

use crate::support::need;
use crate::support::nodes::{CONFIG, NodeUnderTest, counter, eventually, possible, spoofed};

fn pair(topology: &Topology, folder: &Path, flags: &[&str]) -> [NodeUnderTest; 2] {
    let store = folder.join("store");
    std::fs::create_dir_all(&store).unwrap();
    std::fs::write(store.join("config"), CONFIG).unwrap();
    let mut all = vec![format!("--store=dir:{}", store.display())];
    all.extend(flags.iter().map(|flag| (*flag).to_owned()));
    [0, 1].map(|number| NodeUnderTest::start(&topology.hosts()[number], folder, &all))
}

#[test]
fn in_log_mode_the_log_names_sender_and_rule_and_not_each_packet() {
    need!(possible(&[]));
    let topology = Topology::two_hosts().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--peer-check=log", "--workers=1"];
    let [a, mut b] = pair(&topology, folder.path(), &flags);
    eventually("the containers reach each other", || a.reaches(&b));
    let open = || Batched::sender(a.host.address()).unwrap();
    let socket = a.host.namespace().run(open).unwrap();
    let frames = [
        spoofed(&b, &folder.path().join("store"), [10, 5, 254, 9]),
        spoofed(&b, &folder.path().join("store"), [127, 0, 0, 1]),
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
    eventually("all packets are read", || a.reaches(&b));
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
    let topology = Topology::two_hosts().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let [a, mut b] = pair(&topology, folder.path(), &["--workers=1"]);
    eventually("the containers reach each other", || a.reaches(&b));
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
