//! A deleted device that cannot be recreated for a while: a daemon in that state still answers,
//! feeds the watchdog, follows its peers, and stops on a signal.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use uvxlan::testbed::Topology;

use crate::support::directory::DirectoryStore;
use crate::support::need;
use crate::support::nodes::{CONFIG, NodeUnderTest, PROGRAM, eventually, executable, possible};

/// Time limit for an answer, on a busy machine too.
const PROMPTLY: Duration = Duration::from_secs(3);

struct Lab {
    topology: Topology,
    store: DirectoryStore,
    told: UnixDatagram,
}

impl Lab {
    fn new() -> Self {
        let topology = Topology::two_hosts().unwrap();
        let store = DirectoryStore::new(CONFIG);
        let told = UnixDatagram::bind(store.folder.path().join("notify")).unwrap();
        told.set_nonblocking(true).unwrap();
        Self {
            topology,
            store,
            told,
        }
    }

    /// The daemon under a service manager with `WatchdogSec=10`.
    fn program(&self) -> PathBuf {
        let path = self.store.folder.path().join("daemon");
        let text = format!(
            "#!/bin/sh\nNOTIFY_SOCKET={} WATCHDOG_USEC=10000000 exec {PROGRAM} \"$@\"\n",
            self.store.folder.path().join("notify").display()
        );
        executable(&path, &text);
        path
    }

    fn flags(&self) -> [String; 1] {
        [self.store.flag()]
    }

    /// Messages to the service manager since the last call.
    fn told(&self) -> String {
        let (mut all, mut buffer) = (String::new(), [0; 4096]);
        while let Ok(length) = self.told.recv(&mut buffer) {
            all.push_str(&String::from_utf8_lossy(&buffer[..length]));
            all.push('\n');
        }
        all
    }
}

/// Replaces the node's device with another one. The daemon, which would be faster, is stopped
/// meanwhile.
fn occupy(node: &NodeUnderTest) {
    let pid = node.daemon.as_ref().unwrap().pid();
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    let signal = |signal| rustix::process::kill_process(pid, signal).unwrap();
    signal(rustix::process::Signal::STOP);
    node.change(&["link", "del", "flannel.1"]);
    node.change(&["link", "add", "flannel.1", "type", "bridge"]);
    signal(rustix::process::Signal::CONT);
}

fn metrics(node: &NodeUnderTest) -> String {
    let connected = node
        .host
        .namespace()
        .run(|| TcpStream::connect("127.0.0.1:9472"));
    let mut stream = connected.unwrap().unwrap();
    stream.set_read_timeout(Some(PROMPTLY)).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.store.folder.path().join("host-a/log");
            eprintln!("log:\n{}", fs::read_to_string(log).unwrap_or_default());
        }
    }
}

#[test]
fn a_device_that_cannot_be_made_costs_neither_answers_nor_the_watchdog_nor_the_stop() {
    need!(possible(&["ip"]));
    let lab = Lab::new();
    let (first, second) = lab.topology.pair().unwrap();
    let mut a =
        NodeUnderTest::start_program(&lab.program(), first, lab.store.folder.path(), &lab.flags());
    let b = NodeUnderTest::start(second, lab.store.folder.path(), &lab.flags());
    eventually("the containers reach each other", || a.reaches(&b));
    assert_eq!(a.status()["phase"], "serving");

    occupy(&a);
    eventually("the failure is logged", || {
        a.log().contains("restore_failed")
    });
    lab.told();
    // Longer than two checks, and than the first pauses between two retries.
    for _ in 0..10 {
        let asked = Instant::now();
        let answer = a.status();
        let phase = answer["phase"].as_str().unwrap();
        assert!(phase.contains("rebuilding the device"), "{phase}");
        assert!(metrics(&a).contains("uvxlan_serving"), "the metrics page");
        let took = asked.elapsed();
        assert!(took < PROMPTLY, "answered after {took:?}");
        std::thread::sleep(Duration::from_millis(600));
    }
    let told = lab.told();
    assert!(told.contains("WATCHDOG=1"), "the watchdog was fed: {told}");

    // Peers are added and removed meanwhile.
    let record = lab.store.path().join("subnets/10.5.253.0-24");
    let value = r#"{"PublicIP":"192.0.2.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:99"}}"#;
    fs::write(&record, value).unwrap();
    eventually("the new peer is known", || {
        a.status()["peers"].as_array().unwrap().len() == 2
    });
    a.change(&["link", "del", "flannel.1"]);
    eventually("everything is as before", || a.reaches(&b) && b.reaches(&a));
    let route = a.output("ip", &["route", "show", "10.5.253.0/24"]);
    assert!(route.contains("dev flannel.1"), "{route}");
    assert_eq!(a.status()["phase"], "serving");

    occupy(&a);
    eventually("it fails again", || {
        a.log().matches("restore_failed").count() > 1
    });
    // While it waits for the next retry.
    let asked = Instant::now();
    let log = a.stop_daemon();
    assert!(
        asked.elapsed() < PROMPTLY,
        "stopped after {:?}",
        asked.elapsed()
    );
    assert!(log.contains("Exiting cleanly"), "{log}");
}
