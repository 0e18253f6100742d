//! What each mode and each exception of the peer check accepts and drops, also depending on the
//! interface.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;

use ipnet::Ipv4Net;
use uvxlan::dataplane::counters::Counter;
use uvxlan::dataplane::ingress_policy::{Enforcement, IngressPolicy};
use uvxlan::testbed::{Host, available};

use super::spoof::{DESTINATION, SOURCE, risen, set_address};
use crate::support::receiving::{Receiving, settled};

use crate::support::need;
use crate::support::wire::UNDERLAY;

/// A sender without a lease.
const UNKNOWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);
/// Addresses of sender and receiver on a second link.
const SECOND: [Ipv4Addr; 2] = [
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(198, 51, 100, 2),
];

/// The frames sent, each but the first with one error.
#[derive(Debug, Clone, Copy)]
enum Sent {
    Good,
    FromOutside,
    ForeignSource,
    ToClusterIp,
    ByUnknown,
    OtherVni,
}

use Sent::*;

impl Sent {
    const ALL: [Self; 6] = [
        Good,
        FromOutside,
        ForeignSource,
        ToClusterIp,
        ByUnknown,
        OtherVni,
    ];

    fn frame(self, receiving: &Receiving) -> (Option<Ipv4Addr>, Vec<u8>) {
        let mut frame = receiving.frame(7, 0);
        let mut from = None;
        match self {
            Good => {}
            FromOutside => set_address(SOURCE, [198, 51, 100, 7])(&mut frame),
            ForeignSource => set_address(SOURCE, [10, 3, 105, 9])(&mut frame),
            ToClusterIp => set_address(DESTINATION, [10, 96, 0, 1])(&mut frame),
            ByUnknown => from = Some(UNKNOWN),
            OtherVni => frame[6] = 9,
        }
        (from, frame)
    }
}

/// The fate of a frame.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The container gets it.
    Arrives,
    /// It is written to the device, but the host has no route for it.
    Written,
    /// Either of these, and counted as one that `enforce` would drop.
    ArrivesUnchecked,
    WrittenUnchecked,
    Dropped(Counter),
}

use End::*;

fn judge(receiving: &Receiving, name: &str, sent: Sent, end: End) {
    let dataplane = receiving.dataplane().unwrap();
    let (from, frame) = sent.frame(receiving);
    let before = dataplane.totals();
    let arrived = receiving.send_from(from, &[(frame, 0)]);
    let after = settled(dataplane, &before, 2);
    let rise = |counter| after.get(counter) - before.get(counter);
    let (has_arrived, drops, unchecked) = match end {
        Arrives => (true, vec![], 0),
        Written => (false, vec![], 0),
        ArrivesUnchecked => (true, vec![], 1),
        WrittenUnchecked => (false, vec![], 1),
        Dropped(counter) => (false, vec![(counter.label(), 1)], 0),
    };
    let what = format!("{name}: {sent:?}");
    assert_eq!(!arrived.is_empty(), has_arrived, "{what}");
    assert_eq!(risen(&before, &after), drops, "{what}");
    assert_eq!(rise(Counter::PassedUnchecked), unchecked, "{what}");
    let delivered = 2 - drops.len() as u64;
    assert_eq!(rise(Counter::Delivered), delivered, "{what}");
}

#[test]
fn each_mode_and_exception_accepts_what_it_should() {
    use Counter::{InForeignDestination, InForeignSource, InOtherVni, InUnknownPeer};
    need!(available());
    type Change = fn(&mut IngressPolicy);
    let table: [(&str, Change, [End; 6]); 6] = [
        (
            "enforce",
            |_| (),
            [
                Arrives,
                Arrives,
                Dropped(InForeignSource),
                Dropped(InForeignDestination),
                Dropped(InUnknownPeer),
                Dropped(InOtherVni),
            ],
        ),
        (
            "log",
            |policy| policy.mode = Enforcement::Log,
            [
                Arrives,
                Arrives,
                ArrivesUnchecked,
                WrittenUnchecked,
                ArrivesUnchecked,
                // A frame of another network is dropped in every mode.
                Dropped(InOtherVni),
            ],
        ),
        (
            "off",
            |policy| policy.mode = Enforcement::Off,
            [
                Arrives,
                Arrives,
                Arrives,
                Written,
                Arrives,
                Dropped(InOtherVni),
            ],
        ),
        (
            "strict",
            |policy| policy.strict = true,
            [
                Arrives,
                Dropped(InForeignSource),
                Dropped(InForeignSource),
                Dropped(InForeignDestination),
                Dropped(InUnknownPeer),
                Dropped(InOtherVni),
            ],
        ),
        (
            "allow-peer",
            |policy| policy.allow_peers = vec![Ipv4Net::from(UNKNOWN)],
            [
                Arrives,
                Arrives,
                Dropped(InForeignSource),
                Dropped(InForeignDestination),
                Arrives,
                Dropped(InOtherVni),
            ],
        ),
        (
            "forward-extra",
            |policy| policy.forward_extra = vec!["10.96.0.0/12".parse().unwrap()],
            [
                Arrives,
                Arrives,
                Dropped(InForeignSource),
                Written,
                Dropped(InUnknownPeer),
                Dropped(InOtherVni),
            ],
        ),
    ];
    for (name, change, ends) in table {
        let receiving = Receiving::judging(|_, _, policy| {
            policy.socket_filter = false;
            change(policy);
        });
        for (sent, end) in Sent::ALL.into_iter().zip(ends) {
            judge(&receiving, name, sent, end);
        }
    }
}

fn ip(host: &Host, arguments: &str) {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    let output = host.namespace().command(command).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

/// A second link between both hosts, over which the sender's usual address reaches the receiver's
/// second address.
fn join_again([sender, receiver]: [&Host; 2]) {
    let peer = receiver.namespace();
    let join = async |netlink: &uvxlan::host::netlink::Netlink| {
        netlink.create_veth("eth1", "eth1", peer.as_fd()).await
    };
    sender.node().netlink(join).unwrap();
    for (host, address) in [sender, receiver].into_iter().zip(SECOND) {
        ip(host, &format!("addr add {address}/24 dev eth1"));
        ip(host, "link set eth1 up");
    }
    // From the address that has the lease.
    let usual = sender.address();
    ip(
        sender,
        &format!("route replace {}/32 dev eth1 src {usual}", SECOND[1]),
    );
    ip(receiver, "route get 198.51.100.1");
}

#[test]
fn packets_from_another_interface_are_accepted_unless_one_was_chosen() {
    need!(available().and_then(|()| available_ip()));
    let index = |host: &Host| {
        let find = async |netlink: &uvxlan::host::netlink::Netlink| {
            Ok(netlink.expect_link(UNDERLAY).await?.index)
        };
        host.node().netlink(find).unwrap()
    };
    for (mode, chosen, socket_filter, expected) in [
        (Enforcement::Enforce, false, false, None),
        (Enforcement::Enforce, false, true, None),
        (
            Enforcement::Enforce,
            true,
            false,
            Some(Counter::InOtherInterface),
        ),
        (Enforcement::Enforce, true, true, Some(Counter::SocketDrops)),
        // The interface is set independently of the peer check.
        (
            Enforcement::Log,
            true,
            true,
            Some(Counter::InOtherInterface),
        ),
        (
            Enforcement::Off,
            true,
            true,
            Some(Counter::InOtherInterface),
        ),
    ] {
        let name = format!("{mode:?}, interface chosen: {chosen}, socket filter: {socket_filter}");
        let receiving = Receiving::judging(|sender, receiver, policy| {
            join_again([sender, receiver]);
            policy.mode = mode;
            policy.socket_filter = socket_filter;
            policy.interface = chosen.then(|| index(receiver));
        });
        let dataplane = receiving.dataplane().unwrap();
        let before = dataplane.totals();
        // A correct frame of a known peer, except that it arrives over the other link.
        let frame = receiving.frame(7, 0);
        let arrived = receiving.send_to(SECOND[1], None, &[(frame, 0)]);
        let read = 2 - u64::from(expected == Some(Counter::SocketDrops));
        let after = settled(dataplane, &before, read);
        let rise = |counter| after.get(counter) - before.get(counter);
        assert_eq!(arrived.is_empty(), expected.is_some(), "{name}: {after}");
        for counter in [Counter::InOtherInterface, Counter::SocketDrops] {
            let once = u64::from(expected == Some(counter));
            assert_eq!(rise(counter), once, "{name}: {after}");
        }
        assert_eq!(rise(Counter::UdpRead), read, "{name}: {after}");
    }
}

fn available_ip() -> Result<(), String> {
    let found = Command::new("ip").arg("-V").output();
    found
        .map(drop)
        .map_err(|error| format!("no program ip: {error}"))
}
