//! The whole system: daemons on hosts, a real etcd, and containers that reach each other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use uvxlan::subnet::validate::Rejection;
use uvxlan::testbed::traffic::{PingPongRequest, PingRequest, ping, udp_echo, udp_ping_pong};

use crate::support::need;
use crate::support::nodes::{
    CONFIG, Cluster, NodeUnderTest, PREFIX, eventually, possible, soon, without_writer,
};

impl Cluster {
    fn pair(&self) -> (NodeUnderTest, NodeUnderTest) {
        let (a, b) = (self.start(0), self.start(1));
        eventually("the containers reach each other", || a.reaches(&b));
        (a, b)
    }

    /// TTL of the etcd lease of a key, in seconds; 0 if there is none.
    fn granted_ttl(&self, key: &str) -> u64 {
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let found = json(&self.etcd.ctl(&["get", key, "-w", "json"]));
        let Some(lease) = found["kvs"][0]["lease"].as_i64() else {
            assert!(found["kvs"][0].is_object(), "{key} exists: {found}");
            return 0;
        };
        let lease = format!("{lease:x}");
        let answer = self
            .etcd
            .ctl(&["lease", "timetolive", &lease, "-w", "json"]);
        json(&answer)["granted-ttl"].as_u64().unwrap()
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

/// The MAC of the node's daemon in its own state, not the published one.
fn mac(node: &NodeUnderTest) -> String {
    let text = std::fs::read(node.folder.join("state/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&text).unwrap();
    state["vtep_mac"].as_str().unwrap().to_owned()
}

/// Sets a flag on drop, so that a thread that waits for it ends after a failed assertion too.
struct EndOf<'a>(&'a AtomicBool);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn containers_reach_each_other_and_the_leases_are_flannels() {
    need!(tools());
    let cluster = Cluster::new(2, CONFIG);
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
            mac(node)
        );
        // Our fields follow flannel's.
        assert_eq!(without_writer(&value), expected);
        assert!(value.contains(",\"Instance\":"), "{value}");
        assert!(value.ends_with(",\"Probe\":1}"), "{value}");
        let key = format!("{PREFIX}/subnets/{key}");
        assert_eq!(cluster.granted_ttl(&key), 86_400, "flannel's TTL of a day");
        let third = subnet.network().octets()[2];
        assert!(
            (10..=250).contains(&third),
            "between SubnetMin and SubnetMax: {subnet}"
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
    let config = format!("{PREFIX}/config");
    assert_eq!(cluster.granted_ttl(&config), 0, "the config is unchanged");
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
fn packets_of_every_kind_pass_intact() {
    need!(tools());
    let cluster = Cluster::new(2, CONFIG);
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
    let cluster = Cluster::new(3, CONFIG);
    let (a, b) = cluster.pair();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let talking = scope.spawn(|| {
            let (mut sent, mut lost) = (0_u32, 0);
            while !over.load(Ordering::Relaxed) {
                for (from, to) in [(&a, &b), (&b, &a)] {
                    let report = from.ping(to, 10);
                    sent += u32::from(report.sent);
                    lost += report.sent - report.received;
                }
            }
            (sent, lost)
        });
        let end = EndOf(&over);
        let mut c = cluster.start(2);
        eventually("the new node is reachable", || {
            a.reaches(&c) && c.reaches(&b)
        });
        let subnet = c.env.unwrap().subnet;
        c.stop_daemon();
        // As with flannel, the lease outlives the daemon, since the containers may, too.
        let key = cluster.lease(&c).0;
        cluster
            .etcd
            .ctl(&["del", &format!("{PREFIX}/subnets/{key}")]);
        eventually("its routes are gone", || {
            [&a, &b]
                .iter()
                .all(|node| !node.output("ip", &["route"]).contains(&subnet.to_string()))
        });
        drop(end);
        let (sent, lost) = talking.join().unwrap();
        assert_eq!(lost, 0, "of {sent} pings between the others");
        assert!(sent >= 20, "they pinged all the time: {sent}");
    });
}

#[test]
fn a_restart_keeps_subnet_and_mac_whatever_is_lost() {
    need!(tools());
    let cluster = Cluster::new(2, CONFIG);
    let (mut a, b) = cluster.pair();
    let before = cluster.lease(&a);
    type Loss = fn(&std::path::Path);
    let losses: [(&str, Loss); 4] = [
        ("nothing", |_| ()),
        ("subnet.env", |folder| {
            std::fs::remove_file(folder.join("subnet.env")).unwrap();
        }),
        ("the state directory", |folder| {
            std::fs::remove_dir_all(folder.join("state")).unwrap();
        }),
        // Only the lease is left, found by its public IP.
        ("all of it", |folder| {
            std::fs::remove_file(folder.join("subnet.env")).unwrap();
            std::fs::remove_dir_all(folder.join("state")).unwrap();
        }),
    ];
    for (lost, lose) in losses {
        a.stop_daemon();
        lose(&a.folder);
        a.start_daemon();
        let (name, value) = cluster.lease(&a);
        assert_eq!(name, before.0, "without {lost}");
        assert_eq!(
            without_writer(&value),
            without_writer(&before.1),
            "without {lost}"
        );
        assert!(before.1.contains(&mac(&a)), "without {lost}: {before:?}");
        assert_eq!(cluster.etcd.leases().len(), 2, "without {lost}");
        eventually("the containers reach each other again", || {
            a.reaches(&b) && b.reaches(&a)
        });
    }
    // Killed, not stopped.
    let before = cluster.lease(&a);
    drop(a.daemon.take());
    a.start_daemon();
    assert_eq!(cluster.lease(&a), before);
    eventually("after a kill too", || b.reaches(&a));
}

#[test]
fn nothing_is_lost_while_etcd_is_down() {
    need!(tools());
    let mut cluster = Cluster::new(3, CONFIG);
    let (a, b) = cluster.pair();
    // Eight seconds without a gap: before, during and after the kill.
    std::thread::scope(|scope| {
        let talks = [(&a, &b), (&b, &a)].map(|(from, to)| scope.spawn(|| from.ping(to, 160)));
        std::thread::sleep(Duration::from_millis(500));
        cluster.etcd.kill();
        for talk in talks {
            let report = talk.join().unwrap();
            assert!(report.is_complete(), "{report:?}");
        }
    });
    cluster.etcd.run();
    let c = cluster.start(2);
    eventually("a later peer is seen", || a.reaches(&c) && c.reaches(&b));
    assert!(a.ping(&b, 10).is_complete());
}

#[test]
fn a_deleted_device_comes_back() {
    need!(tools());
    let cluster = Cluster::new(2, CONFIG);
    let (a, b) = cluster.pair();
    let index = || {
        let text = a.output("ip", &["-o", "link", "show", "flannel.1"]);
        text.split(':').next().and_then(|index| index.parse().ok())
    };
    let old: u32 = index().unwrap();
    a.change(&["link", "del", "flannel.1"]);
    eventually("there is a new device", || {
        index().is_some_and(|new| new != old)
    });
    eventually("traffic flows again", || a.reaches(&b) && b.reaches(&a));
    let log = a.log();
    assert!(log.contains("device_gone"), "it is logged:\n{log}");
    a.transfer(&b, 1 << 20);
    let before = cluster.lease(&a);
    assert_eq!(before.0, format!("{}-24", a.env.unwrap().subnet.network()));
}

#[test]
fn foreign_changes_on_the_host_are_repaired() {
    need!(tools());
    let cluster = Cluster::new(2, CONFIG);
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
        a.change(change);
        soon(&format!("ip {change:?} is repaired"), || {
            is_whole() && !a.output("ip", &["addr"]).contains("10.5.9.9")
        });
    };
    // With the last address of a device the kernel deletes all of its routes.
    mended(&["addr", "del", &own, "dev", "flannel.1"]);
    a.change(&["route", "add", "198.18.0.0/24", "dev", "flannel.1"]);
    mended(&["route", "del", &far]);
    mended(&["link", "set", "flannel.1", "mtu", "1280"]);
    mended(&["addr", "add", "10.5.9.9/16", "dev", "flannel.1"]);
    let routes = a.output("ip", &["route"]);
    assert!(
        routes.contains("198.18.0.0/24"),
        "others' routes stay: {routes}"
    );
    a.change(&["link", "set", "flannel.1", "down"]);
    soon("the device is up and the route is back", is_whole);
    eventually("traffic flows", || a.reaches(&b) && b.reaches(&a));
    assert!(a.log().contains("routes_repaired"), "it is logged");
}

#[test]
fn a_foreign_route_to_a_peers_subnet_is_neither_replaced_nor_ignored() {
    need!(tools());
    let cluster = Cluster::new(1, CONFIG);
    let a = cluster.start(0);
    let foreign = r#"{"PublicIP":"192.0.2.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:99"}}"#;
    // One that takes precedence over ours, and one that does not.
    for (number, metric) in [(252, "0"), (253, "100")] {
        let subnet = format!("10.5.{number}.0/24");
        a.change(&["route", "add", &subnet, "dev", "eth0", "metric", metric]);
        // Until the next check.
        std::thread::sleep(Duration::from_secs(3));
        let key = format!("{PREFIX}/subnets/10.5.{number}.0-24");
        cluster.etcd.ctl(&["put", &key, foreign]);
        let told = format!("subnet={subnet} error=no route to {subnet} was installed");
        soon("it is logged", || a.log().contains(&told));
        let routes = a.output("ip", &["route", "show", &subnet]);
        assert_eq!(routes.lines().count(), 1, "{routes}");
        assert!(routes.contains("dev eth0"), "{routes}");
        a.change(&["route", "del", &subnet, "metric", metric]);
        soon("our route replaces it", || {
            a.output("ip", &["route", "show", &subnet])
                .contains("dev flannel.1")
        });
        cluster.etcd.ctl(&["del", &key]);
        soon("our route is removed", || {
            a.output("ip", &["route", "show", &subnet]).is_empty()
        });
    }
}

#[test]
fn junk_in_the_store_costs_itself_alone() {
    need!(tools());
    let cluster = Cluster::new(3, CONFIG);
    let (a, b) = cluster.pair();
    let vxlan = |ip: &str, mac: &str| {
        format!(
            "{{\"PublicIP\":\"{ip}\",\"BackendType\":\"vxlan\",\"BackendData\":{{\"VtepMAC\":\"{mac}\"}}}}"
        )
    };
    let good_mac = "0e:11:22:33:44:55";
    // Below SubnetMin, so that no daemon leases one of them.
    let junk = [
        ("10.5.1.0-24", "{".to_owned(), Rejection::Value),
        (
            "10.5.2.0-24",
            String::from("\u{1b}[31m\nred"),
            Rejection::Value,
        ),
        (
            "10.9.1.0-24",
            vxlan("192.0.2.77", good_mac),
            Rejection::OutsideNetwork,
        ),
        (
            "10.5.3.0-24",
            vxlan("127.0.0.1", good_mac),
            Rejection::PublicIp,
        ),
        (
            "10.5.4.0-24",
            vxlan("192.0.2.78", "ff:ff:ff:ff:ff:ff"),
            Rejection::VtepMac,
        ),
        ("0.0.0.0-0", vxlan("192.0.2.79", good_mac), Rejection::Key),
        ("..%2f..", vxlan("192.0.2.80", good_mac), Rejection::Key),
    ];
    for (name, value, _) in &junk {
        let key = format!("{PREFIX}/subnets/{name}");
        cluster.etcd.ctl(&["put", &key, "--", value]);
    }
    let c = cluster.start(2);
    eventually("a valid lease after the invalid ones is seen", || {
        a.reaches(&c)
    });
    assert!(a.ping(&b, 10).is_complete());
    let routes = a.output("ip", &["route"]);
    for foreign in ["10.5.1.", "10.5.2.", "10.9.1.", "10.5.3.", "10.5.4."] {
        assert!(!routes.contains(foreign), "{routes}");
    }
    let log = a.log();
    for (name, _, reason) in &junk {
        let told = log
            .lines()
            .any(|line| line.contains(name) && line.contains(reason.text()));
        assert!(told, "{name} is named in the log, with {reason:?}:\n{log}");
    }
    assert!(
        !log.contains('\u{1b}'),
        "no control character reaches the terminal"
    );
}

#[test]
fn junk_over_a_lease_in_use_does_not_stop_its_traffic() {
    need!(tools());
    let cluster = Cluster::new(2, CONFIG);
    let (a, b) = cluster.pair();
    let (name, good) = cluster.lease(&b);
    let key = format!("{PREFIX}/subnets/{name}");
    cluster.etcd.ctl(&["put", &key, "--", "{"]);
    eventually("both name the record", || {
        let lines = |node: &NodeUnderTest| {
            node.log()
                .lines()
                .any(|line| line.contains(&name) && !line.contains(" INFO "))
        };
        lines(&a) && lines(&b)
    });
    for (from, to) in [(&a, &b), (&b, &a)] {
        let report = from.ping(to, 20);
        assert!(report.is_complete(), "{report:?}");
    }

    // The remedy that the log names.
    cluster.etcd.ctl(&["del", &key]);
    eventually("the lease is restored unchanged", || {
        cluster
            .etcd
            .leases()
            .contains(&(name.clone(), good.clone()))
    });
    assert_eq!(cluster.granted_ttl(&key), 86_400);
    eventually("traffic flows", || a.reaches(&b) && b.reaches(&a));
}
