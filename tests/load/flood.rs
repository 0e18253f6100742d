//! A flood from an unknown source, at this machine's full rate, does not starve the overlay.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use uvxlan::sys::poll;
use uvxlan::sys::udp::{MessageHead, SendBatch, UdpSocket as Batched};
use uvxlan::testbed::Host;
use uvxlan::wire::vxlan::{DEFAULT_PORT, EncapTemplate};
use uvxlan::wire::{MacAddr, Vni};

use crate::alone::alone;
use crate::support::directory::NodePair;
use crate::support::need;
use crate::support::nodes::{NodeUnderTest, counter, possible, spoofed};

/// Duration of the flood.
const FLOOD: Duration = Duration::from_secs(3);
/// Payload of each datagram of the legitimate streams, in bytes.
const PAYLOAD: usize = 1_200;
/// Bits per second of the stream to the flooded node and back. The debug build of the daemon is
/// several times slower than the release build, and so is its share.
const BITS: u64 = if cfg!(debug_assertions) {
    20_000_000
} else {
    100_000_000
};
const BITS_BACK: u64 = BITS / 5;
/// Maximum number of datagrams in a burst.
const MOST_AT_ONCE: u64 = 40;
/// The receive buffers of two packet threads in KiB: 92 of the longest datagram each. A flood
/// touches those that were not needed before, and takes no other memory.
const BUFFERS: u64 = 2 * 92 * 66;
/// Percentage of the legitimate packets that must arrive if the packet threads themselves read
/// the whole flood: on a machine with few processors it takes half of the reading.
const FLOOR_WITHOUT_FILTER: u64 = 20;

/// Sets a flag on drop, so that the flood ends after a failed assertion too.
struct EndOf<'a>(&'a AtomicBool);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The flood: its source and its content.
#[derive(Clone, Copy)]
struct Junk<'a> {
    host: &'a Host,
    source: Ipv4Addr,
    to: Ipv4Addr,
    frame: &'a [u8],
}

/// Sends the same datagram to the tunnel port repeatedly.
fn flood(junk: Junk<'_>, sent: &AtomicU64, over: &AtomicBool) {
    let open = || Batched::sender(junk.source).unwrap();
    let socket = junk.host.namespace().run(open).unwrap();
    let mut batch = SendBatch::new(64);
    while !over.load(Ordering::Relaxed) {
        let mut sending = batch.start();
        while !sending.is_full() {
            sending.message(MessageHead {
                destination: SocketAddrV4::new(junk.to, DEFAULT_PORT),
                segment: None,
                ecn: 0,
            });
            sending.piece(junk.frame);
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

/// A frame with a valid header and invalid content.
fn nonsense() -> Vec<u8> {
    let head = EncapTemplate::ipv4(Vni::DEFAULT, MacAddr([2; 6])).towards(MacAddr([4; 6]));
    [head.as_slice(), &[0x5a; 78]].concat()
}

/// A stream of datagrams between two containers at a bit rate, in bursts of a millisecond;
/// returns how many were sent and arrived.
fn stream(from: &NodeUnderTest, to: &NodeUnderTest, bits: u64, duration: Duration) -> (u64, u64) {
    let bind = |node: &NodeUnderTest| {
        let address = node.container().address();
        let open = || UdpSocket::bind((address, 0)).unwrap();
        node.container().namespace().run(open).unwrap()
    };
    let (sender, receiver) = (bind(from), bind(to));
    receiver
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let destination = receiver.local_addr().unwrap();
    thread::scope(|scope| {
        let counting = scope.spawn(|| {
            let mut buffer = [0; PAYLOAD];
            let mut arrived = 0;
            while receiver.recv(&mut buffer).is_ok() {
                arrived += 1;
            }
            arrived
        });
        let start = Instant::now();
        let mut sent = 0;
        while start.elapsed() < duration {
            let due = start.elapsed().as_micros() as u64 * bits / (PAYLOAD as u64 * 8 * 1_000_000);
            // A test that was not scheduled for a while does not catch up in one burst.
            for _ in 0..due.saturating_sub(sent).min(MOST_AT_ONCE) {
                let left = sender.send_to(&[1; PAYLOAD], destination);
                sent += u64::from(left.is_ok());
            }
            thread::sleep(Duration::from_millis(1));
        }
        (sent, counting.join().unwrap())
    })
}

/// Datagrams to an address of the overlay without a lease, one packet each for the sender's host.
fn lose(from: &NodeUnderTest, over: &AtomicBool) -> u64 {
    let address = from.container().address();
    let open = || UdpSocket::bind((address, 0)).unwrap();
    let socket = from.container().namespace().run(open).unwrap();
    let mut sent = 0;
    while !over.load(Ordering::Relaxed) {
        for _ in 0..20 {
            sent += u64::from(socket.send_to(&[2; 64], "10.5.255.7:9").is_ok());
        }
        thread::sleep(Duration::from_millis(1));
    }
    sent
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

/// Asserts that in both directions every packet that was read was sent, delivered, or dropped
/// under exactly one name. Returns the numbers read in each direction, and dropped.
fn balance(log: &str) -> Books {
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
    let books = Books {
        read: [value("tun_read"), value("udp_read")],
        dropped: [drops("out_"), drops("in_")],
        overflow: value("tun_overflow"),
    };
    let passed = [value("sent"), value("delivered") + value("probes_in")];
    for way in [0, 1] {
        assert_eq!(books.read[way], passed[way] + books.dropped[way], "{line}");
    }
    books
}

/// Outbound and inbound.
#[derive(Debug)]
struct Books {
    read: [u64; 2],
    dropped: [u64; 2],
    /// Dropped by the kernel before we read the device.
    overflow: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    UnknownSource,
    /// An unknown source with a peer's address.
    SpoofedPeer,
}

struct Rain {
    junk: u64,
    /// Datagrams to and from the flooded node.
    streams: [(u64, u64); 2],
    /// Packets without a destination that each node's container sent.
    lost: [u64; 2],
    pings: (u16, u16),
    /// Growth of resident memory in KiB, from before the flood to its middle, and to its end.
    growth: [u64; 2],
    lines: usize,
    /// Counters of the flooded node.
    log: String,
    books: [Books; 2],
}

fn rain(filter: &str, who: From) -> Rain {
    let filter = format!("--socket-filter={filter}");
    let NodePair {
        topology,
        store,
        mut a,
        mut b,
    } = NodePair::start(3, &[&filter]);
    // Touch the buffers before memory is measured.
    a.transfer(&b, 16 << 20);
    b.transfer(&a, 16 << 20);
    let unknown = &topology.hosts()[2];
    let (source, frame) = match who {
        From::UnknownSource => (unknown.address(), nonsense()),
        From::SpoofedPeer => {
            // It does not answer ARP, so that the peer gets its own packets.
            for (setting, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
                let setting = format!("net/ipv4/conf/all/{setting}");
                unknown.node().sysctl(&setting, value).unwrap();
            }
            let peer = a.host.address();
            let take = async |netlink: &uvxlan::host::netlink::Netlink| {
                let loopback = netlink.expect_link("lo").await?.index;
                netlink.set_up(loopback, true).await?;
                netlink.add_address(loopback, peer, 32).await
            };
            unknown.node().netlink(take).unwrap();
            (peer, spoofed(&b, &store.path(), [10, 5, 254, 9]))
        }
    };
    let junk_frames = Junk {
        host: unknown,
        source,
        to: b.host.address(),
        frame: &frame,
    };
    // A route into the device for packets without a peer.
    for node in [&a, &b] {
        node.change(&["route", "add", "10.5.255.0/24", "dev", "flannel.1"]);
    }
    let pid = b.daemon.as_ref().unwrap().pid();
    let (junk, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let lines_before = b.log().lines().count();
    let before = resident(pid);
    let (streams, lost, pings, growth) = thread::scope(|scope| {
        scope.spawn(|| flood(junk_frames, &junk, &over));
        let end = EndOf(&over);
        let lost = [&a, &b].map(|node| scope.spawn(|| lose(node, &over)));
        thread::sleep(Duration::from_millis(500));
        let pings = scope.spawn(|| a.ping(&b, 40));
        let back = scope.spawn(|| stream(&b, &a, BITS_BACK, FLOOD));
        let middle = scope.spawn(|| {
            thread::sleep(FLOOD / 2);
            resident(pid)
        });
        let streams = [stream(&a, &b, BITS, FLOOD), back.join().unwrap()];
        let pings = pings.join().unwrap();
        let middle = middle.join().unwrap();
        let growth = [
            middle.saturating_sub(before),
            resident(pid).saturating_sub(middle),
        ];
        drop(end);
        let lost = lost.map(|lost| lost.join().unwrap());
        (streams, lost, (pings.sent, pings.received), growth)
    });
    let lines = b.log().lines().count() - lines_before;
    let log = b.stop_daemon();
    let books = [balance(&a.stop_daemon()), balance(&log)];
    Rain {
        junk: junk.into_inner(),
        streams,
        lost,
        pings,
        growth,
        lines,
        log,
        books,
    }
}

impl Rain {
    fn show(&self, what: &str) {
        let seconds = FLOOD.as_secs_f64() + 0.5;
        let [(sent, arrived), (sent_back, arrived_back)] = self.streams;
        println!(
            "{what}: {:.0} thousand junk datagrams a second, stream of {:.1} Mb/s {arrived} of \
             {sent}, back {arrived_back} of {sent_back}, pings {} of {}, {:?} KiB more, {} lines, \
             socket_drops {}, in_unknown_peer {}, in_foreign_source {}",
            self.junk as f64 / seconds / 1000.0,
            sent as f64 * (PAYLOAD * 8) as f64 / FLOOD.as_secs_f64() / 1e6,
            self.pings.1,
            self.pings.0,
            self.growth,
            self.lines,
            counter(&self.log, "socket_drops"),
            counter(&self.log, "in_unknown_peer"),
            counter(&self.log, "in_foreign_source"),
        );
    }

    /// Holds for every flood, wherever it is dropped.
    fn assert_bounded(&self) {
        assert!(self.junk > 10_000, "the flood was real: {}", self.junk);
        let [first, then] = self.growth;
        assert!(first <= BUFFERS && then < 1024, "{:?} KiB", self.growth);
        assert!(self.lines <= 10, "{}", self.log);
        // Every packet without a destination is counted by its node, and by no other.
        for (books, lost) in self.books.iter().zip(self.lost) {
            assert!(lost > 100, "{lost}");
            let booked = books.dropped[0] + books.overflow;
            assert!(booked >= lost * 9 / 10, "{lost}: {books:?}");
            assert!(books.read[1] > 0, "{books:?}");
        }
    }

    /// Asserts that at least this percentage of the legitimate packets arrived.
    fn assert_passes(&self, percent: u64) {
        for (sent, arrived) in self.streams {
            assert!(arrived * 100 >= sent * percent, "{arrived} of {sent}");
        }
    }
}

#[test]
fn a_flood_from_an_unknown_source_costs_the_peers_little() {
    need!(possible(&[]));
    let _machine = alone();
    let rain = rain("auto", From::UnknownSource);
    rain.show("unknown source, socket filter");
    rain.assert_bounded();
    rain.assert_passes(90);
    assert!(rain.pings.1 * 10 >= rain.pings.0 * 9, "{:?}", rain.pings);
    // None of it reached a packet thread.
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
    let _machine = alone();
    let rain = rain("off", From::UnknownSource);
    rain.show("unknown source, no filter");
    rain.assert_bounded();
    rain.assert_passes(FLOOR_WITHOUT_FILTER);
    let counted = counter(&rain.log, "in_unknown_peer") + counter(&rain.log, "socket_drops");
    assert!(counted > rain.junk / 2, "{}", rain.log);
}

#[test]
fn a_flood_in_a_peers_name_is_counted_and_bounded_too() {
    need!(possible(&[]));
    let _machine = alone();
    let rain = rain("auto", From::SpoofedPeer);
    rain.show("a peer's address");
    rain.assert_bounded();
    rain.assert_passes(FLOOR_WITHOUT_FILTER);
    let counted = counter(&rain.log, "in_foreign_source") + counter(&rain.log, "socket_drops");
    assert!(counted > rain.junk / 2, "{}", rain.log);
    assert!(
        counter(&rain.log, "in_foreign_source") > 1000,
        "{}",
        rain.log
    );
    assert!(rain.books[1].dropped[1] > 1000, "{:?}", rain.books);
}
