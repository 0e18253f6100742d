//! A flood of empty datagrams does not block any packet thread.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use uvxlan::dataplane::counters::Counter;
use uvxlan::sys::poll;
use uvxlan::sys::udp::{MessageHead, SendBatch, UdpSocket};
use uvxlan::testbed::{Host, available};
use uvxlan::wire::vxlan::DEFAULT_PORT;

use crate::alone::alone;
use crate::support::need;
use crate::support::receiving::Receiving;

/// Sends datagrams of this length from a peer's address at full rate.
fn pour(from: &Host, to: Ipv4Addr, length: usize, over: &AtomicBool) {
    let open = || UdpSocket::sender(from.address()).unwrap();
    let socket = from.namespace().run(open).unwrap();
    let bytes = vec![0; length];
    let mut batch = SendBatch::new(64);
    while !over.load(Ordering::Relaxed) {
        let mut sending = batch.start();
        while !sending.is_full() {
            sending.message(MessageHead {
                destination: SocketAddrV4::new(to, DEFAULT_PORT),
                segment: None,
                ecn: 0,
            });
            sending.piece(&bytes);
        }
        if sending.send(&socket, 0).is_err() {
            let _ = poll::wait_writable(socket.as_fd(), Duration::from_millis(5));
        }
    }
}

struct EndOf<'a>(&'a AtomicBool);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn empty_datagrams_block_no_packet_thread() {
    need!(available());
    let _machine = alone();
    for length in [0, 1] {
        let mut receiving = Receiving::guarded(false);
        let first = receiving.dataplane().unwrap().totals();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let end = EndOf(&over);
            let sender = receiving.hosts().0.clone();
            let to = receiving.address();
            // Several flows, so that each worker gets some.
            for _ in 0..3 {
                let (sender, over) = (sender.clone(), &over);
                scope.spawn(move || pour(&sender, to, length, over));
            }
            std::thread::sleep(Duration::from_millis(500));
            let dataplane = receiving.dataplane_mut().unwrap();
            for _ in 0..3 {
                let before = dataplane.progress();
                std::thread::sleep(Duration::from_secs(2));
                let after = dataplane.progress();
                let moved = before.iter().zip(&after).all(|(one, other)| one < other);
                assert!(moved, "{length} bytes: {before:?}, then {after:?}");
            }
            let stopping = Instant::now();
            dataplane.stop();
            let took = stopping.elapsed();
            drop(end);
            assert!(took < Duration::from_secs(2), "{length} bytes: {took:?}");
            let totals = dataplane.totals();
            let read = totals.get(Counter::UdpRead) - first.get(Counter::UdpRead);
            assert!(read > 100_000, "the flood was real: {totals}");
            assert_eq!(totals.get(Counter::InShort), read, "{totals}");
        });
    }
}
