//! A connection to etcd that is slow, breaks, or drops everything (T26).

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use uvxlan::testbed::Host;

use super::lab::{Lab, losing_nothing};

use crate::support::need;
use crate::support::nodes::possible;

/// The fault that the proxy injects.
#[derive(Clone, Copy, PartialEq)]
#[repr(u8)]
enum Manner {
    Honest,
    /// Each chunk is delayed by this time.
    Slow,
    /// All connections are cut, and then every third one after its first response.
    Cutting,
    /// Connections are accepted, but nothing is forwarded.
    Silent,
    /// Connections are accepted and closed.
    Refusing,
}

const DELAY: Duration = Duration::from_secs(5);

/// A proxy between the daemons and etcd, on etcd's host.
struct Proxy {
    manner: Arc<AtomicU8>,
    connections: Arc<AtomicU64>,
}

fn is(manner: &AtomicU8, which: Manner) -> bool {
    manner.load(Ordering::Relaxed) == which as u8
}

impl Proxy {
    /// Listens on etcd's usual port; etcd is at `port`.
    fn start(host: &Host, port: u16) -> Self {
        let manner = Arc::new(AtomicU8::new(Manner::Honest as u8));
        let connections = Arc::new(AtomicU64::new(0));
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 2379);
        let bound = host.namespace().run(|| TcpListener::bind(any));
        let listener = bound.unwrap().unwrap();
        let (shared, count) = (Arc::clone(&manner), Arc::clone(&connections));
        let namespace = host.namespace().clone();
        let to = SocketAddrV4::new(host.address(), port);
        // They end with the process, and hold only sockets of the namespace.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let number = count.fetch_add(1, Ordering::Relaxed);
                if is(&shared, Manner::Refusing) {
                    continue;
                }
                let server = namespace.run(|| TcpStream::connect(to));
                let Ok(Ok(server)) = server else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let shared = Arc::clone(&shared);
                    std::thread::spawn(move || pass(from, to, &shared, number));
                }
            }
        });
        Self {
            manner,
            connections,
        }
    }

    fn set(&self, manner: Manner) {
        self.manner.store(manner as u8, Ordering::Relaxed);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, manner: &AtomicU8, number: u64) {
    let mut buffer = [0; 16 * 1024];
    from.set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    loop {
        let cut = is(manner, Manner::Refusing)
            || (is(manner, Manner::Cutting) && number.is_multiple_of(3));
        if cut {
            break;
        }
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => break,
        };
        if is(manner, Manner::Slow) {
            std::thread::sleep(DELAY);
        }
        while is(manner, Manner::Silent) {
            std::thread::sleep(Duration::from_millis(100));
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn a_slow_or_broken_connection_to_etcd_costs_no_packet_and_no_lease() {
    need!(possible(&["etcd", "etcdctl"]));
    // Noticed at once.
    let noticed = Duration::from_secs(6);
    for_a_while(&[Manner::Slow, Manner::Cutting, Manner::Refusing], noticed);
}

#[test]
fn a_silent_connection_to_etcd_is_noticed_and_costs_no_packet_and_no_lease() {
    need!(possible(&["etcd", "etcdctl"]));
    // Long enough for a watch to notice the loss: by pings every ten seconds, with five seconds
    // for the reply.
    let noticed = Duration::from_secs(24);
    let tried = for_a_while(&[Manner::Silent], noticed);
    assert!(tried > 0, "not noticed within {noticed:?}");
}

/// Injects these faults for these times, with normal forwarding in between. Returns the number of
/// connection attempts meanwhile.
fn for_a_while(manners: &[Manner], noticed: Duration) -> u64 {
    let mut lab = Lab::new(1);
    lab.members[0].port = 12_379;
    lab.start();
    lab.put_config();
    let proxy = Proxy::start(&lab.topology.hosts()[2], 12_379);
    let through = lab.endpoints().replace("12379", "2379");
    let nodes = lab.nodes(&[through, "--lease-ttl=60".into()]);
    let before = lab.leases();
    let mut all = 0;
    losing_nothing(&nodes, || {
        for manner in manners {
            proxy.set(*manner);
            let connected = proxy.connections.load(Ordering::Relaxed);
            std::thread::sleep(noticed);
            let tried = proxy.connections.load(Ordering::Relaxed) - connected;
            assert!(
                tried < 200,
                "{tried} connections in {noticed:?} are too many"
            );
            all += tried;
            proxy.set(Manner::Honest);
            lab.news_arrive(&nodes[0]);
            lab.news_arrive(&nodes[1]);
        }
    });
    assert_eq!(lab.leases(), before, "no lease was lost or duplicated");
    all
}
