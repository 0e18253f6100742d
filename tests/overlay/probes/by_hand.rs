//! A handmade peer, which sends what none of our peers sends, and counts what it gets.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use uvxlan::sys::poll;
use uvxlan::sys::udp::{ReceiveBatch, UdpSocket};
use uvxlan::testbed::{Host, Topology};
use uvxlan::wire::probe::{Kind, Message, Seen};
use uvxlan::wire::vxlan::{DEFAULT_PORT, ENCAP_LEN};
use uvxlan::wire::{MacAddr, Vni};

use super::{counter, peer, shell, write_flannels_lease};

use crate::support::directory::DirectoryStore;
use crate::support::need;
use crate::support::nodes::{CONFIG, NodeUnderTest, eventually, possible};

const MAC: MacAddr = MacAddr([2, 0x11, 0x22, 0x33, 0x44, 0x55]);
const UNKNOWN: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 77);

/// A host that has a lease but answers nothing by itself.
struct Hand {
    host: Host,
    node: SocketAddrV4,
    node_mac: MacAddr,
    receiver: UdpSocket,
    sender: UdpSocket,
}

impl Hand {
    fn new(host: &Host, node: &NodeUnderTest) -> Self {
        let mac = node.status()["node"]["vtep_mac"]
            .as_str()
            .unwrap()
            .to_owned();
        let open = || {
            let receiver = UdpSocket::receiver(SocketAddrV4::new(host.address(), DEFAULT_PORT));
            (
                receiver.unwrap(),
                UdpSocket::unfragmented_sender(host.address()).unwrap(),
            )
        };
        let (receiver, sender) = host.namespace().run(open).unwrap();
        Self {
            host: host.clone(),
            node: SocketAddrV4::new(node.host.address(), DEFAULT_PORT),
            node_mac: mac.parse().unwrap(),
            receiver,
            sender,
        }
    }

    fn frame(&self, message: &Message) -> Vec<u8> {
        message.datagram(Vni::DEFAULT, MAC, self.node_mac)
    }

    fn send(&self, message: &Message) {
        self.sender
            .send_to(&self.frame(message), self.node)
            .unwrap();
    }

    /// The messages that arrive within this time, or the first `enough` of them.
    fn receive(&self, timeout: Duration, enough: usize) -> Vec<Message> {
        let (mut batch, mut found) = (ReceiveBatch::new(64, 2048), Vec::new());
        let deadline = Instant::now() + timeout;
        while found.len() < enough && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            let _ = poll::wait_readable([self.receiver.as_fd()], Some(left));
            for slot in 0..batch.receive(&self.receiver, 64).unwrap_or(0) {
                let info = batch.datagram(slot);
                let bytes = &batch.buffer()[info.start..info.start + info.len];
                let message = bytes.get(ENCAP_LEN..).and_then(Message::parse);
                found.extend(message);
            }
        }
        found
    }

    /// The replies to our own requests that arrive within a second.
    fn answers(&self) -> Vec<Message> {
        let mut found = self.receive(Duration::from_secs(1), usize::MAX);
        found.retain(|message| matches!(message.kind, Kind::Reply | Kind::SizeReply));
        found
    }

    /// The node's next request; queued ones are discarded.
    fn asked(&self) -> Message {
        self.receive(Duration::from_millis(50), usize::MAX);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            assert!(Instant::now() < deadline, "no request came");
            let found = self.receive(Duration::from_secs(20), 1);
            if let Some(request) = found.into_iter().find(|it| it.kind.reply().is_some()) {
                return request;
            }
        }
    }
}

fn request(number: u32) -> Message {
    Message {
        kind: Kind::Request,
        length: 300,
        nonce: 0xfeed_0000 + u64::from(number),
        session: 4711,
        number,
        seen: Seen::default(),
        held: 0,
    }
}

fn write_lease(store: &DirectoryStore, host: &Host) {
    let value = format!(
        "{{\"PublicIP\":\"{}\",\"BackendType\":\"vxlan\",\
         \"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"{MAC}\"}},\"Probe\":1,\"More\":[]}}",
        host.address()
    );
    std::fs::write(store.path().join("subnets/10.5.200.0-24"), value).unwrap();
}

/// Whether these counters rose by these amounts, and no other ones in `before`.
fn rises(node: &NodeUnderTest, before: &[(&str, u64)], expected: &[(&str, u64)]) -> bool {
    before.iter().all(|(name, earlier)| {
        let rise = expected.iter().find(|(found, _)| found == name);
        counter(node, name) == earlier + rise.map_or(0, |(_, rise)| *rise)
    })
}

const NAMES: [&str; 9] = [
    "probes_answered",
    "probe_strays",
    "probe_replays",
    "probe_excess",
    "in_probe_malformed",
    "in_probe_flood",
    "in_unknown_peer",
    "in_not_ipv4",
    "in_other_mac",
];

#[test]
fn only_valid_probes_are_answered() {
    need!(possible(&["ip"]));
    let topology = Topology::two_hosts().unwrap();
    let (one, two) = topology.pair().unwrap();
    let store = DirectoryStore::new(CONFIG);
    write_lease(&store, two);
    // Unknown sources must reach the packet loop, which has one thread.
    let flags = ["--probe-interval=1", "--socket-filter=off", "--workers=1"];
    let node = store.start(one, &flags);
    let hand = Hand::new(two, &node);
    let counters = || NAMES.map(|name| (name, counter(&node, name)));
    let step = |what: &str, expected: &[(&str, u64)], act: &dyn Fn() -> Vec<Message>| {
        // A new second for the rate limit.
        std::thread::sleep(Duration::from_millis(1100));
        let before = counters();
        let answers = act();
        eventually(what, || rises(&node, &before, expected));
        let promised = expected.iter().find(|(name, _)| *name == "probes_answered");
        assert_eq!(
            answers.len() as u64,
            promised.map_or(0, |(_, count)| *count),
            "{what}"
        );
        answers
    };

    let answered = step(
        "a request is answered once",
        &[("probes_answered", 1)],
        &|| {
            hand.send(&request(1));
            hand.answers()
        },
    );
    let [answer] = answered[..] else { panic!() };
    let seen = Seen {
        session: 4711,
        latest: 1,
        mask: 1,
    };
    assert!(answer.held < 1_000_000, "{answer:?}");
    let expected = Message {
        kind: Kind::Reply,
        seen,
        held: answer.held,
        ..request(1)
    };
    assert_eq!(answer, expected, "not longer than the request");
    step("a copy is not", &[("probe_replays", 3)], &|| {
        (0..3).for_each(|_| hand.send(&request(1)));
        hand.answers()
    });
    // A flood gets a few replies: those of one second, or of two if it spans two.
    let named = ["probes_answered", "probe_excess", "in_probe_flood"];
    let ends = || named.map(|name| counter(&node, name));
    let before = ends();
    (2..102).for_each(|number| hand.send(&request(number)));
    let answers = hand.answers().len() as u64;
    let rise = || {
        let now = ends();
        [0, 1, 2].map(|at| now[at] - before[at])
    };
    eventually("all messages are counted", || {
        rise().iter().sum::<u64>() == 100
    });
    let [answered, excess, flood] = rise();
    assert_eq!(answers, answered);
    assert!((4..=8).contains(&answered), "{answered} answers");
    assert!(excess >= 4 && flood >= 84, "{excess} excess, {flood} flood");
    let size = Message {
        kind: Kind::SizeRequest,
        length: 1400,
        ..request(1)
    };
    let answered = step(
        "a long one is answered whole",
        &[("probes_answered", 1)],
        &|| {
            hand.send(&size);
            hand.answers()
        },
    );
    assert_eq!(
        (answered[0].kind, answered[0].length),
        (Kind::SizeReply, 1400)
    );
    step(
        "what is cut is nothing",
        &[("in_probe_malformed", 1)],
        &|| {
            let frame = hand.frame(&request(200));
            hand.sender
                .send_to(&frame[..ENCAP_LEN + 100], hand.node)
                .unwrap();
            hand.answers()
        },
    );
    step(
        "another MAC is not the lease's",
        &[("probe_strays", 1)],
        &|| {
            let frame = request(201).datagram(Vni::DEFAULT, MacAddr([2; 6]), hand.node_mac);
            hand.sender.send_to(&frame, hand.node).unwrap();
            hand.answers()
        },
    );
    step(
        "another VTEP's is not ours",
        &[("in_other_mac", 1)],
        &|| {
            let frame = request(202).datagram(Vni::DEFAULT, MAC, MacAddr([2; 6]));
            hand.sender.send_to(&frame, hand.node).unwrap();
            hand.answers()
        },
    );
    step(
        "another ethertype is no probe",
        &[("in_not_ipv4", 1)],
        &|| {
            let mut frame = hand.frame(&request(203));
            frame[21] = 0xb6;
            hand.sender.send_to(&frame, hand.node).unwrap();
            hand.answers()
        },
    );
    step(
        "an unknown source gets no reply",
        &[("in_unknown_peer", 1)],
        &|| {
            shell(&hand.host, &format!("ip addr add {UNKNOWN}/32 dev eth0"));
            shell(one, &format!("ip route replace {UNKNOWN}/32 dev eth0"));
            let open = || UdpSocket::unfragmented_sender(UNKNOWN).unwrap();
            let socket = hand.host.namespace().run(open).unwrap();
            socket
                .send_to(&hand.frame(&request(204)), hand.node)
                .unwrap();
            hand.answers()
        },
    );

    // Only the right reply counts, and only once. On a busy machine it may be too late.
    assert!(peer(&node)["rtt_us"].is_null());
    let answered = (0..10).any(|_| {
        let before = counter(&node, "probe_strays");
        let asked = hand.asked();
        let good = Message {
            kind: asked.kind.reply().unwrap(),
            ..asked
        };
        let wrong = Message {
            nonce: asked.nonce ^ 1,
            ..good
        };
        for message in [&wrong, &good, &good] {
            hand.send(message);
        }
        eventually("two or all three are strays", || {
            counter(&node, "probe_strays") >= before + 2
        });
        std::thread::sleep(Duration::from_millis(200));
        let strays = counter(&node, "probe_strays") - before;
        let known = peer(&node)["rtt_us"].as_u64().is_some();
        assert_eq!(known, strays == 2, "{strays} strays");
        known
    });
    assert!(answered, "no correct reply was counted");

    // Everything that was read is counted under a name.
    let totals = node.status();
    let sum = |wanted: &dyn Fn(&str, &str) -> bool| -> u64 {
        let counters = totals["counters"].as_array().unwrap().iter();
        let wanted = counters.filter(|counter| {
            wanted(
                counter["name"].as_str().unwrap(),
                counter["kind"].as_str().unwrap(),
            )
        });
        wanted
            .map(|counter| counter["value"].as_u64().unwrap())
            .sum()
    };
    let ends = ["delivered", "probes_in"];
    assert_eq!(
        sum(&|name, _| name == "udp_read"),
        sum(&|name, kind| ends.contains(&name) || kind == "drop-in"),
        "{totals}"
    );

    // flannel's lease for the same host: neither requests nor replies any more.
    write_flannels_lease(&store.path().join("subnets/10.5.200.0-24"), two);
    eventually("the lease is read", || peer(&node)["probe"] == "icmp");
    hand.receive(Duration::from_millis(100), usize::MAX);
    hand.send(&request(300));
    let found = hand.receive(Duration::from_secs(3), usize::MAX);
    assert_eq!(found, []);
}
