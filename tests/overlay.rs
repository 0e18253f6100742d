//! The whole of it: daemons on hosts, a real etcd, and containers that reach each other.

#[path = "support/nodes.rs"]
mod nodes;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nodes::{CONFIG, EtcdOnHost, NodeUnderTest, PREFIX, eventually, need, possible};
use uvxlan::testbed::Topology;
use uvxlan::testbed::traffic::{PingPongRequest, PingRequest, ping, udp_echo, udp_ping_pong};

/// The last host has etcd, the others can have daemons.
struct Cluster {
    topology: Topology,
    etcd: EtcdOnHost,
    folder: tempfile::TempDir,
}

impl Cluster {
    fn new(daemons: usize) -> Self {
        let topology = Topology::with_hosts(daemons + 1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let etcd = EtcdOnHost::start(topology.hosts().last().unwrap(), folder.path());
        etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
        Self {
            topology,
            etcd,
            folder,
        }
    }

    fn start(&self, number: usize) -> NodeUnderTest {
        let flags = [format!("--etcd-endpoints={}", self.etcd.url())];
        NodeUnderTest::start(&self.topology.hosts()[number], self.folder.path(), &flags)
    }

    fn pair(&self) -> (NodeUnderTest, NodeUnderTest) {
        let (a, b) = (self.start(0), self.start(1));
        eventually("the containers reach each other", || a.reaches(&b));
        (a, b)
    }

    /// The lease of a node: its key and value.
    fn lease(&self, node: &NodeUnderTest) -> (String, String) {
        let public_ip = format!("\"PublicIP\":\"{}\"", node.host.address());
        let found = self.etcd.leases();
        let own = found.iter().find(|(_, value)| value.contains(&public_ip));
        own.unwrap_or_else(|| panic!("{public_ip} in {found:?}"))
            .clone()
    }
}

fn tools() -> Result<(), String> {
    possible(&["etcd", "etcdctl"])
}

fn mac(value: &str) -> &str {
    let start = value.find("VtepMAC\":\"").unwrap() + 10;
    &value[start..start + 17]
}

#[test]
fn containers_reach_each_other_and_the_leases_are_flannels() {
    need!(tools());
    let cluster = Cluster::new(2);
    let (a, b) = cluster.pair();
    for (from, to) in [(&a, &b), (&b, &a)] {
        let report = from.ping(to, 40);
        assert_eq!(report.received, 40, "{report:?}");
        assert!(report.ttls.iter().all(|ttl| *ttl == 62), "{report:?}");
    }

    for node in [&a, &b] {
        let (key, value) = cluster.lease(node);
        let subnet = node.env.unwrap().subnet;
        assert_eq!(key, format!("{}-24", subnet.network()));
        let link = node.output("ip", &["-o", "link", "show", "flannel.1"]);
        assert!(link.contains("mtu 1450"), "{link}");
        let expected = format!(
            "{{\"PublicIP\":\"{}\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
             \"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"{}\"}}}}",
            node.host.address(),
            mac(&value)
        );
        // Behind flannel's fields one of ours, where the machine has an id.
        let rest = value.strip_prefix(&expected[..expected.len() - 1]).unwrap();
        let number = rest.strip_prefix(",\"Node\":").unwrap_or(rest);
        let digits = number.strip_suffix('}').unwrap();
        assert!(digits.bytes().all(|byte| byte.is_ascii_digit()), "{value}");
        let json = cluster
            .etcd
            .ctl(&["get", &format!("{PREFIX}/subnets/{key}"), "-w", "json"]);
        assert!(
            json.contains("\"lease\":"),
            "it expires with the node: {json}"
        );
        let third = subnet.network().octets()[2];
        assert!(
            (10..=250).contains(&third),
            "SubnetMin to SubnetMax: {subnet}"
        );
        let other = if std::ptr::eq(node, &a) { &b } else { &a };
        let other = other.env.unwrap().subnet;
        let routes = node.output("ip", &["route"]);
        let expected = format!("{other} via {} dev flannel.1", other.network());
        assert!(
            routes.contains(&expected) && routes.contains("onlink"),
            "{routes}"
        );
        let address = node.output("ip", &["-o", "addr", "show", "flannel.1"]);
        assert!(
            address.contains(&format!("inet {}/32", subnet.network())),
            "{address}"
        );
    }
    let env = std::fs::read_to_string(a.folder.join("subnet.env")).unwrap();
    let subnet = a.env.unwrap().subnet.to_string().replace(".0/24", ".1/24");
    assert_eq!(
        env,
        format!(
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1450\n\
             FLANNEL_IPMASQ=false\n"
        )
    );
}

#[test]
fn packets_of_every_kind_pass_whole() {
    need!(tools());
    let cluster = Cluster::new(2);
    let (a, b) = cluster.pair();
    for (from, to) in [(&a, &b), (&b, &a)] {
        let echo = udp_echo(to.container().namespace(), to.container().address()).unwrap();
        for payload_len in [0, 1, 64, 1421, 1422, 1423, 4000, 60_000] {
            let request = PingPongRequest {
                destination: echo.address(),
                payload_len,
                count: 3,
                timeout: Duration::from_secs(2),
            };
            let report = udp_ping_pong(from.container().namespace(), request).unwrap();
            assert_eq!(report.received, 3, "{payload_len} bytes: {report:?}");
        }
        for payload_len in (0..=1422).step_by(79).chain([4000]) {
            let request = PingRequest {
                payload_len,
                count: 1,
                ..PingRequest::new(to.container().address())
            };
            let report = ping(from.container().namespace(), request).unwrap();
            assert!(report.is_complete(), "{payload_len} bytes: {report:?}");
        }
        from.transfer(to, 16 << 20);
    }
}

#[test]
fn a_third_host_joins_and_leaves_while_others_talk() {
    need!(tools());
    let cluster = Cluster::new(3);
    let (a, b) = cluster.pair();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let talking = scope.spawn(|| {
            let mut lost = 0;
            while !over.load(Ordering::Relaxed) {
                let report = a.ping(&b, 10);
                lost += report.sent - report.received;
            }
            lost
        });
        let mut c = cluster.start(2);
        eventually("the newcomer is reached", || a.reaches(&c) && c.reaches(&b));
        let subnet = c.env.unwrap().subnet;
        c.stop_daemon();
        // As with flannel, the lease outlives the daemon: the containers may, too.
        let key = cluster.lease(&c).0;
        cluster
            .etcd
            .ctl(&["del", &format!("{PREFIX}/subnets/{key}")]);
        eventually("its routes are gone", || {
            [&a, &b]
                .iter()
                .all(|node| !node.output("ip", &["route"]).contains(&subnet.to_string()))
        });
        over.store(true, Ordering::Relaxed);
        assert_eq!(talking.join().unwrap(), 0, "pings between the others");
    });
}

#[test]
fn a_restart_keeps_subnet_and_mac_whatever_is_lost() {
    need!(tools());
    let cluster = Cluster::new(2);
    let (mut a, b) = cluster.pair();
    let before = cluster.lease(&a);
    type Loss = fn(&std::path::Path);
    let losses: [(&str, Loss); 3] = [
        ("nothing", |_| ()),
        ("subnet.env", |folder| {
            std::fs::remove_file(folder.join("subnet.env")).unwrap();
        }),
        ("the state directory", |folder| {
            std::fs::remove_dir_all(folder.join("state")).unwrap();
        }),
    ];
    for (lost, lose) in losses {
        a.stop_daemon();
        lose(&a.folder);
        a.start_daemon();
        assert_eq!(cluster.lease(&a), before, "{lost} was lost");
        assert_eq!(cluster.etcd.leases().len(), 2, "{lost} was lost");
        eventually("the containers reach each other again", || {
            a.reaches(&b) && b.reaches(&a)
        });
    }
    // Killed, not stopped.
    drop(a.daemon.take());
    a.start_daemon();
    assert_eq!(cluster.lease(&a), before);
    eventually("after a kill too", || b.reaches(&a));
}

#[test]
fn nothing_is_lost_while_etcd_is_away() {
    need!(tools());
    let mut cluster = Cluster::new(3);
    let (a, b) = cluster.pair();
    cluster.etcd.kill();
    for _ in 0..6 {
        let report = a.ping(&b, 10);
        assert!(report.is_complete(), "{report:?}");
        std::thread::sleep(Duration::from_secs(1));
    }
    cluster.etcd.run();
    let c = cluster.start(2);
    eventually("what changed afterwards is seen", || {
        a.reaches(&c) && c.reaches(&b)
    });
    assert!(a.ping(&b, 10).is_complete());
}

#[test]
fn a_deleted_device_comes_back() {
    need!(tools());
    let cluster = Cluster::new(2);
    let (a, b) = cluster.pair();
    a.output("ip", &["link", "del", "flannel.1"]);
    eventually("traffic flows again", || a.reaches(&b) && b.reaches(&a));
    a.transfer(&b, 1 << 20);
    let before = cluster.lease(&a);
    assert_eq!(before.0, format!("{}-24", a.env.unwrap().subnet.network()));
}

#[test]
fn what_somebody_changes_on_the_host_is_mended() {
    need!(tools());
    let cluster = Cluster::new(2);
    let (a, b) = cluster.pair();
    let far = b.env.unwrap().subnet.to_string();
    let own = format!("{}/32", a.env.unwrap().subnet.network());
    let is_whole = || {
        let link = a.output("ip", &["-o", "link", "show", "flannel.1"]);
        a.output("ip", &["route"]).contains(&format!("{far} via"))
            && a.output("ip", &["-o", "addr", "show", "flannel.1"])
                .contains(&own)
            && link.contains("mtu 1450")
            && link.contains(",UP")
    };
    let mended = |change: &[&str]| {
        a.output("ip", change);
        eventually(&format!("ip {change:?} is mended"), || {
            is_whole() && !a.output("ip", &["addr"]).contains("10.5.9.9")
        });
    };
    // With its last address the kernel takes every route from a device.
    mended(&["addr", "del", &own, "dev", "flannel.1"]);
    a.output("ip", &["route", "add", "198.18.0.0/24", "dev", "flannel.1"]);
    mended(&["route", "del", &far]);
    mended(&["link", "set", "flannel.1", "mtu", "1280"]);
    mended(&["addr", "add", "10.5.9.9/16", "dev", "flannel.1"]);
    let routes = a.output("ip", &["route"]);
    assert!(
        routes.contains("198.18.0.0/24"),
        "others' routes stay: {routes}"
    );
    a.output("ip", &["link", "set", "flannel.1", "down"]);
    eventually("the device is up and the route is back", is_whole);
    eventually("traffic flows", || a.reaches(&b) && b.reaches(&a));
    assert!(a.log().contains("routes_mended"), "and the log says so");
}

#[test]
fn junk_in_the_store_costs_itself_alone() {
    need!(tools());
    let cluster = Cluster::new(3);
    let (a, b) = cluster.pair();
    let vxlan = |ip: &str, mac: &str| {
        format!(
            "{{\"PublicIP\":\"{ip}\",\"BackendType\":\"vxlan\",\"BackendData\":{{\"VtepMAC\":\"{mac}\"}}}}"
        )
    };
    let good_mac = "0e:11:22:33:44:55";
    let junk = [
        ("10.5.77.0-24", "{".to_owned()),
        ("10.5.78.0-24", String::from("\u{1b}[31m\nred")),
        ("10.9.1.0-24", vxlan("192.0.2.77", good_mac)),
        ("10.5.79.0-24", vxlan("127.0.0.1", good_mac)),
        ("10.5.80.0-24", vxlan("192.0.2.78", "ff:ff:ff:ff:ff:ff")),
        ("0.0.0.0-0", vxlan("192.0.2.79", good_mac)),
        ("..%2f..", vxlan("192.0.2.80", good_mac)),
    ];
    for (name, value) in &junk {
        let key = format!("{PREFIX}/subnets/{name}");
        cluster.etcd.ctl(&["put", &key, "--", value]);
    }
    let c = cluster.start(2);
    eventually("a good lease behind the junk is seen", || a.reaches(&c));
    assert!(a.ping(&b, 10).is_complete());
    let routes = a.output("ip", &["route"]);
    for stranger in ["10.5.77.", "10.5.78.", "10.9.1.", "10.5.79.", "10.5.80."] {
        assert!(!routes.contains(stranger), "{routes}");
    }
    let log = a.log();
    for (name, _) in &junk {
        assert!(log.contains(name), "{name} is named in the log:\n{log}");
    }
    assert!(
        !log.contains('\u{1b}'),
        "nothing of it reaches a terminal raw"
    );
}
