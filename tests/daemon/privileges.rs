//! A running daemon holds no more privileges than it needs, and still does all of its work.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use uvxlan::testbed::{DaemonProcess, Topology, UNDERLAY_DEVICE};

use crate::support::need;
use crate::support::nodes::{
    CONFIG, NodeUnderTest, PROGRAM, TIMEOUT, eventually, executable, possible,
};

/// Bits of `CAP_DAC_OVERRIDE`, `CAP_NET_BIND_SERVICE`, `CAP_NET_ADMIN` and `CAP_NET_RAW`
/// (`include/uapi/linux/capability.h`).
const SERVING: u64 = 1 << 1 | 1 << 10 | 1 << 12 | 1 << 13;
const NET_ADMIN: u64 = 1 << 12;
/// The bit of a signal in a mask.
const SIGTERM: u64 = 1 << (15 - 1);

/// Name and `/proc/PID/task/TID/status` of every thread.
fn threads(pid: u32) -> Vec<(String, BTreeMap<String, String>)> {
    let folder = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    folder
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("status")).ok())
        .map(|text| {
            let lines = text.lines().filter_map(|line| line.split_once(":\t"));
            let fields: BTreeMap<_, _> = lines
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect();
            (fields["Name"].clone(), fields)
        })
        .collect()
}

fn bits(fields: &BTreeMap<String, String>, name: &str) -> u64 {
    u64::from_str_radix(&fields[name], 16).unwrap()
}

/// Asserts that the packet threads have no capabilities, and all others only those they need.
fn check(pid: u32) {
    let packet_threads_ready = || {
        let found = threads(pid);
        let mut packet = found.iter().filter(|(name, _)| name.starts_with("uvxlan-"));
        packet.clone().count() > 0 && packet.all(|(_, fields)| fields["Seccomp"] == "2")
    };
    eventually("packet threads have a seccomp filter", packet_threads_ready);
    for (name, fields) in threads(pid) {
        let is_packet_thread = name.starts_with("uvxlan-");
        assert_eq!(fields["NoNewPrivs"], "1", "{name}");
        // A packet thread may not do what a handler does: the signal would be lost.
        let takes_sigterm = bits(&fields, "SigBlk") & SIGTERM == 0;
        assert_eq!(takes_sigterm, !is_packet_thread, "{name}");
        let allowed = if is_packet_thread { 0 } else { SERVING };
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            let held = bits(&fields, set);
            assert_eq!(held & !allowed, 0, "{name}: {set} {held:x}");
        }
        if !is_packet_thread {
            assert_ne!(bits(&fields, "CapEff") & NET_ADMIN, 0, "{name} reconciles");
        }
    }
}

/// The daemon with the capabilities that the unit grants.
fn as_the_unit_starts_it(folder: &Path) -> PathBuf {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/uvxlan.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    let mut lines = unit.lines();
    let set = lines.find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let set: String = set
        .unwrap()
        .split(' ')
        .map(|name| name.replace("CAP_", ",+").to_lowercase())
        .collect();
    let program = folder.join("uvxlan-of-the-unit");
    let text = format!(
        "#!/bin/sh\nexec setpriv --bounding-set=-all{set} --inh-caps=-all {PROGRAM} \"$@\"\n"
    );
    executable(&program, &text);
    program
}

fn pair(folder: &Path, program: &Path) -> (Topology, NodeUnderTest, NodeUnderTest) {
    let topology = Topology::two_hosts().unwrap();
    let store = folder.join("store");
    std::fs::create_dir_all(&store).unwrap();
    let config = CONFIG.replace(r#""vxlan""#, r#""vxlan", "MTU": 1500"#);
    std::fs::write(store.join("config"), config).unwrap();
    let flags = [
        format!("--store=dir:{}", store.display()),
        "--ip-masq".into(),
        "--iptables-resync=1".into(),
    ];
    let [a, b] = [0, 1].map(|number| {
        NodeUnderTest::start_program(program, &topology.hosts()[number], folder, &flags)
    });
    eventually("the containers reach each other", || a.reaches(&b));
    (topology, a, b)
}

#[test]
fn threads_hold_what_they_need_and_everything_works() {
    need!(possible(&["iptables"]));
    let folder = tempfile::tempdir().unwrap();
    everything_works(&pair(folder.path(), Path::new(PROGRAM)));
}

#[test]
fn the_units_capabilities_are_enough() {
    need!(possible(&["iptables", "setpriv"]));
    let folder = tempfile::tempdir().unwrap();
    let program = as_the_unit_starts_it(folder.path());
    everything_works(&pair(folder.path(), &program));
}

#[test]
fn under_the_unit_the_holder_of_the_port_is_named() {
    need!(possible(&["setpriv"]));
    let folder = tempfile::tempdir().unwrap();
    let program = as_the_unit_starts_it(folder.path());
    let topology = Topology::two_hosts().unwrap();
    let host = &topology.hosts()[0];
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 8472)).unwrap();
    let _holder = host.namespace().run(bind).unwrap();
    let store = folder.path().join("store");
    std::fs::create_dir_all(&store).unwrap();
    std::fs::write(store.join("config"), CONFIG).unwrap();
    let store = format!("--store=dir:{}", store.display());
    let node = folder.path().join("node");
    let mut daemon = DaemonProcess::start(&program, host, &node, [store.as_str()]).unwrap();
    let ended = daemon.ready(TIMEOUT).unwrap_err().to_string();
    // This process has capabilities that the daemon does not have.
    let holder = format!("(pid {})", std::process::id());
    assert!(ended.contains(&holder), "{ended}");
}

fn everything_works((_topology, a, b): &(Topology, NodeUnderTest, NodeUnderTest)) {
    let pid = a.daemon.as_ref().unwrap().pid();
    check(pid);
    a.transfer(b, 16 << 20);
    b.transfer(a, 16 << 20);

    // The control thread can still do its work: recreate the device with new packet threads and
    // sockets, and set routes, rules and files.
    a.change(&["link", "del", "flannel.1"]);
    eventually("traffic flows over the new device", || {
        a.log().contains("device_restored") && a.reaches(b)
    });
    check(pid);
    a.transfer(b, 1 << 20);
    let masquerades = || {
        a.output("iptables", &["-t", "nat", "-S"])
            .contains("MASQUERADE")
    };
    assert!(masquerades());
    a.output("iptables", &["-t", "nat", "-F"]);
    eventually("the rules are restored", masquerades);

    // And the rare system calls of a packet thread. The device keeps the configured MTU; otherwise
    // it would follow the interface before the first packet.
    for node in [a, b] {
        node.change(&["link", "set", UNDERLAY_DEVICE, "mtu", "1400"]);
    }
    a.transfer(b, 4 << 20);
    eventually("the smaller path MTU is known", || {
        a.log().contains("path_mtu_low")
    });

    let log = a.log();
    assert!(!log.contains("not_confined"), "{log}");
    assert!(!log.contains("Operation not permitted"), "{log}");
}
