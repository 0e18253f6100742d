//! An underlay with loss, duplication and reordering, by a relay between the hosts instead of
//! netem.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use uvxlan::testbed::traffic::{TransferRequest, tcp_transfer};
use uvxlan::testbed::{Host, Topology, available};
use uvxlan::wire::MacAddr;
use uvxlan::wire::vxlan::DEFAULT_PORT;

use crate::support::need;
use crate::support::wire::{MTU, kernel_subnet, our_end, our_subnet};

const MACS: [MacAddr; 2] = [
    MacAddr([0x0e, 0, 0, 0, 0, 1]),
    MacAddr([0x0e, 0, 0, 0, 0, 2]),
];

/// A relay between two hosts, the peer of both.
struct Relay {
    over: Arc<AtomicBool>,
    mangled: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    fn start(host: &Host, ends: [Ipv4Addr; 2]) -> Self {
        let socket = host
            .namespace()
            .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT)).unwrap())
            .unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(5)))
            .unwrap();
        let (over, mangled) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = {
            let (over, mangled) = (Arc::clone(&over), Arc::clone(&mangled));
            std::thread::spawn(move || relay(&socket, ends, &over, &mangled))
        };
        Self {
            over,
            mangled,
            thread: Some(thread),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn relay(socket: &UdpSocket, ends: [Ipv4Addr; 2], over: &AtomicBool, mangled: &AtomicU64) {
    let mut buffer = vec![0; 65_536];
    // Held back until the next one of its direction has passed.
    let mut held: [Option<Vec<u8>>; 2] = [None, None];
    let mut seed = 1u64;
    while !over.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Some(side) = ends.iter().position(|end| *end == from.ip()) else {
            continue;
        };
        let to = SocketAddrV4::new(ends[1 - side], DEFAULT_PORT);
        let packet = &buffer[..length];
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let fate = (seed >> 33) % 1000;
        mangled.fetch_add(u64::from(fate < 30), Ordering::Relaxed);
        match fate {
            0..10 => continue,
            10..20 => {
                let _ = socket.send_to(packet, to);
                let _ = socket.send_to(packet, to);
            }
            20..30 if held[side].is_none() => {
                held[side] = Some(packet.to_vec());
                continue;
            }
            _ => {
                let _ = socket.send_to(packet, to);
            }
        }
        if let Some(late) = held[side].take() {
            let _ = socket.send_to(&late, to);
        }
    }
}

#[test]
fn loss_duplication_and_reordering_corrupt_nothing() {
    need!(available());
    let topology = Topology::with_hosts(3).unwrap();
    let [a, b, between] = topology.hosts() else {
        panic!("three hosts were asked for")
    };
    let relay = Relay::start(between, [a.address(), b.address()]);
    let _ends = [
        our_end(
            a,
            kernel_subnet(),
            MACS[0],
            (our_subnet(), between, MACS[1]),
        ),
        our_end(
            b,
            our_subnet(),
            MACS[1],
            (kernel_subnet(), between, MACS[0]),
        ),
    ];
    let mtu = u32::from(MTU);
    let first = a.add_container(kernel_subnet(), mtu).unwrap();
    let second = b.add_container(our_subnet(), mtu).unwrap();
    for (from, to) in [(&first, &second), (&second, &first)] {
        let request = TransferRequest {
            deadline: Duration::from_secs(120),
            ..TransferRequest::new(to.address(), 4 << 20)
        };
        let report = tcp_transfer(from.namespace(), to.namespace(), request, |_| ()).unwrap();
        assert!(report.is_intact(), "{report:?}");
    }
    assert!(
        relay.mangled.load(Ordering::Relaxed) > 20,
        "the underlay was bad"
    );
}
