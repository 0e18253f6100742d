//! Junk from a stranger, as much of it as this machine makes, does not starve the overlay.

#[path = "support/nodes.rs"]
mod nodes;

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nodes::{CONFIG, NodeUnderTest, eventually, need, possible};
use uvxlan::sys::poll;
use uvxlan::sys::udp::{MessageHead, SendBatch, UdpSocket as Batched};
use uvxlan::testbed::{Host, Topology};
use uvxlan::wire::vxlan::{DEFAULT_PORT, EncapTemplate};
use uvxlan::wire::{MacAddr, Vni};

/// How long it rains.
const FLOOD: Duration = Duration::from_secs(3);
/// Pause between two datagrams of the legitimate stream.
const PAUSE: Duration = Duration::from_millis(1);

/// Sets a flag when dropped: the flood ends after a failed assertion too.
struct EndOf<'a>(&'a AtomicBool);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Frames with a right header and nothing right inside, to the tunnel port.
fn flood(from: &Host, to: Ipv4Addr, sent: &AtomicU64, over: &AtomicBool) {
    let open = || Batched::sender(from.address()).unwrap();
    let socket = from.namespace().run(open).unwrap();
    let head = EncapTemplate::ipv4(Vni::DEFAULT, MacAddr([2; 6])).towards(MacAddr([4; 6]));
    let frame = [head.as_slice(), &[0x5a; 78]].concat();
    let mut batch = SendBatch::new(64);
    while !over.load(Ordering::Relaxed) {
        let mut sending = batch.start();
        while !sending.is_full() {
            sending.message(MessageHead {
                destination: SocketAddrV4::new(to, DEFAULT_PORT),
                segment: None,
                ecn: 0,
            });
            sending.piece(&frame);
        }
        match sending.send(&socket, 0) {
            Ok(count) => {
                sent.fetch_add(count as u64, Ordering::Relaxed);
            }
            Err(_) => {
                let _ = poll::wait_writable(socket.as_fd(), Duration::from_millis(5));
            }
        }
    }
}

/// A stream of datagrams between two containers; returns how many left and arrived.
fn stream(from: &NodeUnderTest, to: &NodeUnderTest, duration: Duration) -> (u64, u64) {
    let bind = |node: &NodeUnderTest| {
        let address = node.container().address();
        let open = || UdpSocket::bind((address, 0)).unwrap();
        node.container().namespace().run(open).unwrap()
    };
    let (sender, receiver) = (bind(from), bind(to));
    receiver
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let destination = receiver.local_addr().unwrap();
    thread::scope(|scope| {
        let counting = scope.spawn(|| {
            let mut buffer = [0; 256];
            let mut arrived = 0;
            while receiver.recv(&mut buffer).is_ok() {
                arrived += 1;
            }
            arrived
        });
        let start = Instant::now();
        let mut sent = 0;
        while start.elapsed() < duration {
            sent += u64::from(sender.send_to(&[1; 200], destination).is_ok());
            thread::sleep(PAUSE);
        }
        (sent, counting.join().unwrap())
    })
}

/// Resident memory in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

fn counter(log: &str, name: &str) -> u64 {
    let value = log.split(&format!("{name}=")).nth(1);
    let digits = |text: &str| {
        text.split(|c: char| !c.is_ascii_digit())
            .next()
            .map(str::to_owned)
    };
    value
        .and_then(digits)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// Every packet that was read is sent, delivered, or dropped under one name: exactly, in both
/// directions.
fn assert_balanced(log: &str) {
    let line = log.lines().rev().find(|line| line.contains("udp_read="));
    let line = line.unwrap_or_else(|| panic!("no counters in:\n{log}"));
    let counters: Vec<(&str, u64)> = line
        .split_whitespace()
        .map(|word| word.strip_prefix("counters=").unwrap_or(word))
        .filter_map(|word| word.split_once('='))
        .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
        .collect();
    let value = |name: &str| {
        let found = counters.iter().find(|(found, _)| *found == name);
        found.map_or(0, |(_, value)| *value)
    };
    let drops = |prefix: &str| -> u64 {
        let drops = counters.iter().filter(|(name, _)| name.starts_with(prefix));
        drops.map(|(_, value)| value).sum()
    };
    assert_eq!(value("tun_read"), value("sent") + drops("out_"), "{line}");
    assert_eq!(
        value("udp_read"),
        value("delivered") + value("probes_in") + drops("in_"),
        "{line}"
    );
    assert!(
        value("udp_read") > 10_000 && value("tun_read") > 0,
        "{line}"
    );
}

struct Rain {
    junk: u64,
    sent: u64,
    arrived: u64,
    pings: (u16, u16),
    /// Growth of resident memory in KiB, from the first to the last second.
    growth: u64,
    lines: usize,
    log: String,
}

fn rain(filter: &str) -> Rain {
    let topology = Topology::with_hosts(3).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    std::fs::create_dir_all(&store).unwrap();
    std::fs::write(store.join("config"), CONFIG).unwrap();
    let flags = [
        format!("--store=dir:{}", store.display()),
        format!("--socket-filter={filter}"),
    ];
    let start =
        |number: usize| NodeUnderTest::start(&topology.hosts()[number], folder.path(), &flags);
    let (a, mut b) = (start(0), start(1));
    eventually("the containers reach each other", || a.reaches(&b));
    // Buffers are touched before memory is measured.
    a.transfer(&b, 16 << 20);
    let (stranger, target) = (&topology.hosts()[2], b.host.address());
    let pid = b.daemon.as_ref().unwrap().pid();
    let (junk, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let lines_before = b.log().lines().count();
    let (legitimate, pings, growth) = thread::scope(|scope| {
        scope.spawn(|| flood(stranger, target, &junk, &over));
        let end = EndOf(&over);
        thread::sleep(Duration::from_millis(500));
        let before = resident(pid);
        let pings = scope.spawn(|| a.ping(&b, 40));
        let legitimate = stream(&a, &b, FLOOD);
        let pings = pings.join().unwrap();
        let growth = resident(pid).saturating_sub(before);
        drop(end);
        (legitimate, (pings.sent, pings.received), growth)
    });
    let lines = b.log().lines().count() - lines_before;
    Rain {
        junk: junk.into_inner(),
        sent: legitimate.0,
        arrived: legitimate.1,
        pings,
        growth,
        lines,
        log: b.stop_daemon(),
    }
}

fn show(filter: &str, rain: &Rain) {
    println!(
        "filter {filter}: {} junk datagrams, stream {} of {}, pings {} of {}, {} KiB more, {} lines, \
         socket_drops {}, in_unknown_peer {}",
        rain.junk,
        rain.arrived,
        rain.sent,
        rain.pings.1,
        rain.pings.0,
        rain.growth,
        rain.lines,
        counter(&rain.log, "socket_drops"),
        counter(&rain.log, "in_unknown_peer"),
    );
}

#[test]
fn a_flood_from_a_stranger_costs_the_peers_little() {
    need!(possible(&[]));
    let rain = rain("auto");
    show("auto", &rain);
    assert_balanced(&rain.log);
    assert!(rain.junk > 10_000, "it did rain: {}", rain.junk);
    assert!(
        rain.arrived * 10 >= rain.sent * 9,
        "{} of {}",
        rain.arrived,
        rain.sent
    );
    assert!(rain.pings.1 * 10 >= rain.pings.0 * 9, "{:?}", rain.pings);
    assert!(rain.growth < 1024, "{} KiB", rain.growth);
    assert!(rain.lines <= 10, "{}", rain.log);
    // Nothing of it reached a packet thread.
    assert!(
        counter(&rain.log, "socket_drops") > rain.junk / 2,
        "{}",
        rain.log
    );
    assert_eq!(counter(&rain.log, "in_unknown_peer"), 0, "{}", rain.log);
}

#[test]
fn without_the_filter_a_flood_is_counted_and_bounded_too() {
    need!(possible(&[]));
    let rain = rain("off");
    show("off", &rain);
    assert_balanced(&rain.log);
    assert!(rain.arrived > 0, "the stream goes on");
    assert!(rain.growth < 1024, "{} KiB", rain.growth);
    assert!(rain.lines <= 10, "{}", rain.log);
    let counted = counter(&rain.log, "in_unknown_peer") + counter(&rain.log, "socket_drops");
    assert!(counted > rain.junk / 2, "{}", rain.log);
}
