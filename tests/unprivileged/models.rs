//! The state that threads share, under every interleaving: loom substitutes its own locks and
//! atomics in the source files of the packet loop. The route snapshot is swapped by a crate that
//! loom cannot instrument, so it is tested with real threads.

#[path = "../../src/dataplane/generation.rs"]
#[expect(dead_code, reason = "not all of it is tested here")]
mod generation;
#[path = "../../src/dataplane/stop.rs"]
mod stop;

/// Replaces the standard library's.
mod sync {
    pub(crate) use loom::sync::{Mutex, atomic};
}

use std::sync::atomic::{AtomicBool, Ordering};

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use generation::GenerationCell;
use stop::{Stop, Wake};

/// An eventfd that is never read: once written, it stays readable.
struct Event {
    written: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn new() -> Self {
        Self {
            written: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    /// poll(2) without a timeout.
    fn wait(&self) {
        let mut written = self.written.lock().unwrap();
        while !*written {
            written = self.changed.wait(written).unwrap();
        }
    }
}

impl Wake for Event {
    fn wake(&self) {
        *self.written.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

#[test]
fn no_worker_sleeps_through_the_end() {
    loom::model(|| {
        let stop = Arc::new(Stop::new(Event::new()));
        let workers = [0, 1].map(|_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut turns = 0;
                while !stop.is_set() {
                    stop.wake().wait();
                    turns += 1;
                }
                // Woken once, it finds the flag, and does not spin.
                assert!(turns <= 1, "{turns}");
            })
        });
        stop.set();
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

#[test]
fn a_packet_thread_sees_each_change_and_never_an_older_value() {
    loom::model(|| {
        let shared = Arc::new(GenerationCell::new((0, 0)));
        let writer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                for number in 1..=2 {
                    // Both halves belong together.
                    shared.change(|value| *value = (number, -number));
                }
            })
        };
        let mut copy = shared.copy();
        let mut last = copy.value.0;
        for _ in 0..2 {
            shared.refresh(&mut copy);
            let (one, other) = copy.value;
            assert_eq!(one, -other, "half of a change was seen");
            assert!(one >= last, "{one} after {last}");
            last = one;
        }
        writer.join().unwrap();
        shared.refresh(&mut copy);
        assert_eq!(
            copy.value,
            (2, -2),
            "the last change is seen at the next check"
        );
    });
}

#[test]
fn concurrent_changes_are_not_lost() {
    loom::model(|| {
        let shared = Arc::new(GenerationCell::new(Vec::new()));
        let writers = [1, 2].map(|number| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.change(|list| list.push(number)))
        });
        let mut copy = shared.copy();
        shared.refresh(&mut copy);
        for writer in writers {
            writer.join().unwrap();
        }
        shared.refresh(&mut copy);
        copy.value.sort_unstable();
        assert_eq!(copy.value, [1, 2]);
    });
}

#[test]
fn snapshots_are_whole_in_order_and_freed() {
    use uvxlan::route::peer::{PeerId, RemoteVtep};
    use uvxlan::route::publish::Routes;
    use uvxlan::route::table::RouteTable;

    const ROUNDS: u32 = 20_000;
    let network = "10.0.0.0/16".parse().unwrap();
    let routes = Routes::new(RouteTable::empty(network, 24));
    // Each snapshot has two routes whose ports are its number.
    let port = |round: u32| (round % 60_000) as u16 + 1;
    let publish = |round: u32| {
        let endpoint = std::net::SocketAddrV4::new([192, 0, 2, 1].into(), port(round));
        let peer = RemoteVtep::new(endpoint, Default::default(), PeerId(0));
        let subnets = ["10.0.1.0/24", "10.0.200.0/24"].map(|text| (text.parse().unwrap(), peer));
        routes.publish(routes.current().with(subnets));
    };
    publish(0);
    let over = AtomicBool::new(false);
    let first = std::sync::Arc::downgrade(&routes.current());
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let mut reader = routes.reader();
                let over = &over;
                scope.spawn(move || {
                    let mut last = 0;
                    let mut seen = 0u64;
                    while !over.load(Ordering::Relaxed) {
                        let table = reader.current();
                        let ports = [[10, 0, 1, 9], [10, 0, 200, 9]]
                            .map(|inner| table.lookup(inner.into()).unwrap().endpoint().port());
                        assert_eq!(ports[0], ports[1], "half of a snapshot");
                        assert!(ports[0] >= last, "{} after {last}", ports[0]);
                        seen += u64::from(ports[0] != last);
                        last = ports[0];
                    }
                    assert_eq!(reader.current().len(), 2);
                    seen
                })
            })
            .collect();
        for round in 1..=ROUNDS {
            publish(round);
        }
        over.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    assert!(first.upgrade().is_none(), "no thread holds an old snapshot");
}
