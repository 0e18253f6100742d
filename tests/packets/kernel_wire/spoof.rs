//! Handmade frames sent to a node that enforces the peer check: each invalid one is dropped under
//! its own counter, and valid ones pass.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use uvxlan::dataplane::counters::{Counter, Kind as CounterKind, Totals};
use uvxlan::testbed::available;
use uvxlan::wire::checksum::Sum;
use uvxlan::wire::vxlan::ENCAP_LEN;

use crate::support::receiving::{OTHER_PEER, Receiving, settled};

use crate::support::need;
use crate::support::wire::{OUR_MAC, kernel_subnet, our_subnet};

type Change = Box<dyn Fn(&mut Vec<u8>)>;

/// A name, the sender, the change of the frame, and the counter that must rise; none if the
/// packet must arrive.
struct Row {
    name: String,
    from: Option<Ipv4Addr>,
    change: Change,
    expected: Option<Counter>,
    /// A fragment of a datagram: the device gets it, but no socket.
    part: bool,
}

fn row(name: &str, change: impl Fn(&mut Vec<u8>) + 'static, expected: Option<Counter>) -> Row {
    Row {
        name: name.into(),
        from: None,
        change: Box::new(change),
        expected,
        part: false,
    }
}

fn reseal(frame: &mut [u8]) {
    let header = &mut frame[ENCAP_LEN..ENCAP_LEN + 20];
    header[10..12].fill(0);
    let check = Sum::of(header).finish();
    header[10..12].copy_from_slice(&check);
}

pub(crate) fn set_address(at: usize, address: [u8; 4]) -> impl Fn(&mut Vec<u8>) {
    move |frame| {
        frame[ENCAP_LEN + at..ENCAP_LEN + at + 4].copy_from_slice(&address);
        // No UDP checksum, so that only the addresses are wrong.
        frame[ENCAP_LEN + 26..ENCAP_LEN + 28].fill(0);
        reseal(frame);
    }
}

/// Appends options to the header, which grows by their length.
fn set_options(options: &'static [u8]) -> impl Fn(&mut Vec<u8>) {
    move |frame| {
        let behind = ENCAP_LEN + 20;
        frame.splice(behind..behind, options.iter().copied());
        let header_len = 20 + options.len();
        frame[ENCAP_LEN] = 0x40 | (header_len / 4) as u8;
        let total = (frame.len() - ENCAP_LEN) as u16;
        frame[ENCAP_LEN + 2..ENCAP_LEN + 4].copy_from_slice(&total.to_be_bytes());
        let header = &mut frame[ENCAP_LEN..ENCAP_LEN + header_len];
        header[10..12].fill(0);
        let check = Sum::of(header).finish();
        header[10..12].copy_from_slice(&check);
    }
}

/// A fragment with these flags and this offset in units of eight bytes.
fn fragment(flags_and_offset: u16) -> impl Fn(&mut Vec<u8>) {
    move |frame| {
        frame[ENCAP_LEN + 6..ENCAP_LEN + 8].copy_from_slice(&flags_and_offset.to_be_bytes());
        reseal(frame);
    }
}

/// A sender without a lease that is allowed by configuration.
const ALLOWED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);
pub(crate) const SOURCE: usize = 12;
pub(crate) const DESTINATION: usize = 16;

/// `peer` and `host` are the underlay addresses of the sender and of the receiver, which also
/// has `own`; `other` is a second peer's.
fn rows([peer, host, own, other]: [Ipv4Addr; 4]) -> Vec<Row> {
    use Counter::*;
    let [a, b, c, _] = kernel_subnet().network().octets();
    let [d, e, f, _] = our_subnet().network().octets();
    let from = |address| set_address(SOURCE, address);
    let to = |address| set_address(DESTINATION, address);
    let mut rows = vec![
        row("as it should be", |_| (), None),
        row("from the peer's VTEP itself", from([a, b, c, 0]), None),
        row("from outside of the network", from([198, 51, 100, 7]), None),
        Row {
            part: true,
            ..row("a first fragment", fragment(0x2000), None)
        },
        Row {
            part: true,
            ..row("a fragment in the middle", fragment(0x2000 | 100), None)
        },
        Row {
            part: true,
            ..row("a last fragment", fragment(200), None)
        },
        row(
            "another peer's subnet, in a fragment",
            move |frame| {
                fragment(200)(frame);
                set_address(SOURCE, [a, b, c + 100, 9])(frame);
            },
            Some(InForeignSource),
        ),
        row(
            "another peer's subnet",
            from([a, b, c + 100, 9]),
            Some(InForeignSource),
        ),
        row("our own subnet", from([d, e, f, 9]), Some(InForeignSource)),
        row("loopback as source", from([127, 0, 0, 1]), Some(InMartian)),
        row(
            "link-local as source",
            from([169, 254, 1, 1]),
            Some(InMartian),
        ),
        row("a group as source", from([224, 0, 0, 5]), Some(InMartian)),
        row("broadcast as source", from([255; 4]), Some(InMartian)),
        row(
            "a service of the host",
            to(host.octets()),
            Some(InForeignDestination),
        ),
        row(
            "a ClusterIP",
            to([10, 96, 0, 1]),
            Some(InForeignDestination),
        ),
        row(
            "a third node's container",
            to([a, b, c + 100, 2]),
            Some(InForeignDestination),
        ),
        row("loopback", to([127, 0, 0, 1]), Some(InMartian)),
        row(
            "the metadata service",
            to([169, 254, 169, 254]),
            Some(InMartian),
        ),
        row("a group", to([224, 0, 0, 1]), Some(InMartian)),
        row("broadcast", to([255; 4]), Some(InMartian)),
        row(
            "our subnet's broadcast",
            to([d, e, f, 255]),
            Some(InMartian),
        ),
        row("from the peer's own address", from(peer.octets()), None),
        row(
            "another peer's address",
            from(other.octets()),
            Some(InForeignSource),
        ),
        row("our address", from(host.octets()), Some(InForeignSource)),
        row(
            "another address of ours",
            from(own.octets()),
            Some(InForeignSource),
        ),
        Row {
            from: Some(ALLOWED),
            ..row("an allowed sender", from([a, b, c + 100, 9]), None)
        },
        Row {
            from: Some(ALLOWED),
            ..row(
                "our own subnet, of an allowed sender",
                from([d, e, f, 9]),
                Some(InForeignSource),
            )
        },
        row(
            "a loose source route",
            set_options(&[131, 7, 4, 10, 96, 0, 1, 0]),
            Some(InSourceRoute),
        ),
        row(
            "a strict source route",
            set_options(&[1, 137, 7, 4, 10, 96, 0, 1]),
            Some(InSourceRoute),
        ),
        row(
            "an option that is none",
            set_options(&[7, 60, 4, 0]),
            Some(InMalformed),
        ),
        row("no operation", set_options(&[1, 1, 1, 0]), None),
        row(
            "a damaged header",
            |frame| frame[ENCAP_LEN + 10] ^= 1,
            Some(InHeaderChecksum),
        ),
        row("another VNI", |frame| frame[6] = 9, Some(InOtherVni)),
        row("no I flag", |frame| frame[0] = 0, Some(InNoVni)),
        row(
            "ARP",
            |frame| frame[20..22].copy_from_slice(&[8, 6]),
            Some(InNotIpv4),
        ),
        row(
            "IPv6",
            |frame| frame[20..22].copy_from_slice(&[0x86, 0xdd]),
            Some(InNotIpv4),
        ),
        row(
            "a VLAN tag",
            |frame| {
                frame.splice(20..20, [0x81, 0, 0, 7]);
            },
            Some(InNotIpv4),
        ),
        row(
            "a probe, where none are wanted",
            |frame| frame[20..22].copy_from_slice(&[0x88, 0xb5]),
            Some(InNotIpv4),
        ),
        row(
            "another VTEP's MAC",
            |frame| frame[9] ^= 1,
            Some(InOtherMac),
        ),
        row(
            "our MAC as source",
            |frame| frame[14..20].copy_from_slice(&OUR_MAC.0),
            Some(InOwnMac),
        ),
        row(
            "IP version 6 inside",
            |frame| frame[ENCAP_LEN] = 0x65,
            Some(InMalformed),
        ),
        Row {
            from: Some(Ipv4Addr::new(192, 0, 2, 77)),
            ..row("an unknown sender", |_| (), Some(InUnknownPeer))
        },
    ];
    for bit in (0..64).filter(|bit| *bit != 4 && !(32..56).contains(bit)) {
        rows.push(row(
            &format!("reserved bit {bit}"),
            move |frame| frame[bit / 8] ^= 0x80 >> (bit % 8),
            Some(InReservedBits),
        ));
    }
    for length in 0..ENCAP_LEN + 28 + 40 {
        rows.push(row(
            &format!("cut at {length} bytes"),
            move |frame| frame.truncate(length),
            Some(InShort),
        ));
    }
    rows
}

/// The drop counters that rose, and by how much.
pub(crate) fn risen(before: &Totals, after: &Totals) -> Vec<(&'static str, u64)> {
    let drops = Counter::ALL
        .iter()
        .filter(|counter| counter.kind() == CounterKind::DropIn);
    drops
        .map(|counter| (counter.label(), after.get(*counter) - before.get(*counter)))
        .filter(|(_, rise)| *rise > 0)
        .collect()
}

#[test]
fn each_spoof_raises_its_own_counter_and_nothing_else() {
    need!(available());
    let own = Ipv4Addr::new(203, 0, 113, 5);
    let receiving = Receiving::judging(|_, host, policy| {
        policy.socket_filter = false;
        policy.allow_peers = vec![Ipv4Net::from(ALLOWED)];
        policy.own.set([host.address(), own]);
    });
    let dataplane = receiving.dataplane().unwrap();
    let (_, other, _) = OTHER_PEER;
    let addresses = [receiving.sender(), receiving.address(), own, other];
    for (row, number) in rows(addresses).into_iter().zip(1..) {
        let mut frame = receiving.frame(number, 0);
        (row.change)(&mut frame);
        let before = dataplane.totals();
        let arrived = receiving.send_from(row.from, &[(frame, 0)]);
        let after = settled(dataplane, &before, 2);
        let found = risen(&before, &after);
        let delivered = after.get(Counter::Delivered) - before.get(Counter::Delivered);
        let name = row.name;
        match row.expected {
            None => {
                let whole = if row.part { vec![] } else { vec![(number, 0)] };
                assert_eq!(arrived, whole, "{name}: {found:?}");
                assert_eq!((delivered, found), (2, vec![]), "{name}");
            }
            Some(counter) => {
                assert_eq!(arrived, [], "{name}");
                assert_eq!(found, [(counter.label(), 1)], "{name}");
            }
        }
    }
    let totals = dataplane.totals();
    assert_eq!(
        totals.get(Counter::UdpRead),
        totals.get(Counter::Delivered) + totals.sum(CounterKind::DropIn),
        "{totals}"
    );
}

#[test]
fn the_socket_filter_drops_unknown_sources_earlier() {
    need!(available());
    let receiving = Receiving::guarded(true);
    let dataplane = receiving.dataplane().unwrap();
    let unknown = Ipv4Addr::new(192, 0, 2, 77);
    for (from, dropped) in [(None, 0), (Some(unknown), 1)] {
        let before = dataplane.totals();
        let arrived = receiving.send_from(from, &[(receiving.frame(7, 0), 0)]);
        let after = settled(dataplane, &before, 2 - dropped);
        let rise = |counter| after.get(counter) - before.get(counter);
        assert_eq!(rise(Counter::SocketDrops), dropped, "from {from:?}");
        assert_eq!(risen(&before, &after), [], "from {from:?}");
        // The last frame is the peer's and always arrives.
        assert_eq!(arrived.len() as u64, 1 - dropped, "from {from:?}");
        assert_eq!(rise(Counter::UdpRead), 2 - dropped, "from {from:?}");
    }
}
