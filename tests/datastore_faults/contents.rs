//! Records that are wiped, compacted, surrounded by invalid ones, deleted or taken over (T20 to
//! T23), and a store that is down for longer than the leases' TTL (T19).

use std::time::Duration;

use super::lab::{FOREIGN_SUBNET, Lab, losing_nothing};

use crate::support::fleet::put_all;
use crate::support::need;
use crate::support::nodes::{NodeUnderTest, PREFIX, eventually, possible};

/// A lease of a host that does not exist.
const FOREIGN_LEASE: &str = r#"{"PublicIP":"192.0.2.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:99"}}"#;

fn lines(node: &NodeUnderTest) -> usize {
    node.log().lines().count()
}

fn key(node: &NodeUnderTest) -> String {
    let subnet = node.env.unwrap().subnet.to_string();
    format!("{PREFIX}/subnets/{}", subnet.replace('/', "-"))
}

fn route(node: &NodeUnderTest, subnet: &str) -> String {
    node.output("ip", &["route", "show", subnet])
}

#[test]
fn a_wiped_store_is_filled_again_and_no_packet_is_lost() {
    need!(possible(&["etcd", "etcdctl"]));
    let mut lab = Lab::with_config(1);
    let flags = [
        lab.endpoints(),
        "--lease-ttl=60".into(),
        "--mass-delete-hold=6".into(),
    ];
    let nodes = lab.nodes(&flags);
    let before = lab.leases();
    losing_nothing(&nodes, || {
        lab.members[0].kill();
        lab.members[0].wipe();
        lab.members[0].start();
        lab.wait();
        eventually("both leases are back, with the same subnets", || {
            lab.leases() == before
        });
        // Longer than missing peers are kept.
        std::thread::sleep(Duration::from_secs(8));
        lab.put_config();
        lab.news_arrive(&nodes[0]);
        lab.news_arrive(&nodes[1]);
    });
    assert_eq!(lab.leases(), before);
}

#[test]
fn a_lease_that_went_while_history_was_compacted_is_missed_by_nobody() {
    need!(possible(&["etcd", "etcdctl"]));
    let mut lab = Lab::with_config(1);
    // A list that is missing one of two peers is held.
    let flags = ["--lease-ttl=60", "--mass-delete-hold=3"].map(String::from);
    let nodes = lab.nodes(&[[lab.endpoints()].as_slice(), &flags].concat());
    let before = lab.leases();
    let foreign = format!("{PREFIX}/subnets/{FOREIGN_SUBNET}-24");
    let subnet = format!("{FOREIGN_SUBNET}/24");
    lab.ctl(&["put", &foreign, FOREIGN_LEASE]);
    for node in &nodes {
        eventually("the unknown lease has a route", || {
            !route(node, &subnet).is_empty()
        });
    }
    let logged = [0, 1].map(|n: usize| lines(&nodes[n]));
    losing_nothing(&nodes, || {
        // Outside of the daemons' prefix.
        lab.members[0].kill();
        lab.members[0].port = 12_379;
        lab.members[0].start();
        lab.wait();
        lab.ctl(&["del", &foreign]);
        for number in 0..20 {
            lab.ctl(&["put", "x", &number.to_string()]);
        }
        let found = lab.ctl(&["get", "x", "-w", "json"]);
        let found: serde_json::Value = serde_json::from_str(&found).unwrap();
        lab.ctl(&["compact", &found["header"]["revision"].to_string()]);
        lab.members[0].kill();
        lab.members[0].port = 2379;
        lab.members[0].start();
        lab.wait();
        for node in &nodes {
            eventually("the route is gone", || route(node, &subnet).is_empty());
        }
        lab.news_arrive(&nodes[0]);
        lab.news_arrive(&nodes[1]);
    });
    assert_eq!(lab.leases(), before);
    for (node, before) in nodes.iter().zip(logged) {
        let log = node.log();
        assert_eq!(log.matches("lost history").count(), 1, "{log}");
        let new = lines(node) - before;
        assert!(new < 30, "{new} lines in {log}");
    }
}

#[test]
fn ten_thousand_invalid_records_cost_no_packet_and_little_memory() {
    need!(possible(&["etcd", "etcdctl"]));
    const RUBBISH: u64 = 10_000;
    let lab = Lab::with_config(1);
    let nodes = lab.nodes(&[lab.endpoints(), "--lease-ttl=60".into()]);
    let before = lab.leases();
    let pids = [0, 1].map(|n: usize| nodes[n].daemon.as_ref().unwrap().pid());
    // The memory for the first traffic and replies does not count.
    lab.news_arrive(&nodes[0]);
    let resident = pids.map(resident);
    let logged = [0, 1].map(|n: usize| lines(&nodes[n]));
    let refused = |node: &NodeUnderTest| {
        let status = node.status();
        let counts = status["refused_total"].as_array().unwrap();
        counts
            .iter()
            .filter_map(|pair| pair[1].as_u64())
            .sum::<u64>()
    };
    losing_nothing(&nodes, || {
        lab.with_client(async |mut client| {
            let rubbish = (0..RUBBISH).map(|n| {
                let (high, low) = (n >> 8 & 0xff, n & 0xff);
                let name = match n % 5 {
                    0 => format!("x{n}.0.0.0-0"),
                    1 => format!("11.{high}.{low}.0-24"),
                    2 => format!("12.{high}.{low}.0-33"),
                    3 => format!("\u{1b}]0;{n}\u{7}"),
                    _ => format!("13.{high}.{low}.1-24"),
                };
                let value = match n % 2 {
                    0 => FOREIGN_LEASE.into(),
                    _ => vec![0xff; 200],
                };
                (format!("{PREFIX}/subnets/{name}"), value)
            });
            put_all(&mut client, rubbish).await;
        });
        for node in &nodes {
            eventually("all are refused", || refused(node) >= RUBBISH);
        }
        lab.news_arrive(&nodes[0]);
        lab.news_arrive(&nodes[1]);
    });
    for (number, node) in nodes.iter().enumerate() {
        assert_eq!(refused(node), RUBBISH);
        let grown = self::resident(pids[number]).saturating_sub(resident[number]);
        assert!(grown < 16 * 1024, "{grown} KiB more");
        let new = lines(node) - logged[number];
        assert!(new < 40, "{new} lines in {}", node.log());
        assert!(!node.log().contains('\u{1b}'), "escaped");
    }
    let left: Vec<_> = before
        .iter()
        .filter(|key| !lab.leases().contains(key))
        .collect();
    assert!(left.is_empty(), "{left:?} are gone");
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.unwrap().parse().unwrap()
}

#[test]
fn a_deleted_or_taken_record_is_logged_and_nothing_else_changes() {
    need!(possible(&["etcd", "etcdctl"]));
    let lab = Lab::with_config(1);
    let mut nodes = lab.nodes(&[lab.endpoints(), "--lease-ttl=60".into()]);
    let before = lab.leases();
    let own = key(&nodes[0]);
    let env = nodes[0].env.unwrap();
    let far = nodes[1].env.unwrap().subnet.to_string();
    lab.ctl(&["del", &own]);
    eventually("it is restored", || lab.leases() == before);
    eventually("the containers reach each other again", || {
        nodes[0].reaches(&nodes[1])
    });

    // Another host takes the key without asking, as flannel of v0.11 can.
    lab.ctl(&["put", &own, FOREIGN_LEASE]);
    eventually("it is logged", || {
        nodes[0].status()["datastore"]["lease"] == "taken"
            && nodes[0].log().contains("taken by another host")
    });
    std::thread::sleep(Duration::from_secs(3));
    let found = lab.ctl(&["get", "--print-value-only", &own]);
    assert_eq!(found.trim(), FOREIGN_LEASE, "it is not overwritten");
    // The state of this host stays as it is, and in use.
    assert!(route(&nodes[0], &far).contains("flannel.1"));
    let table = nodes[0].output("ip", &["-o", "addr", "show", "flannel.1"]);
    assert!(table.contains(&env.subnet.network().to_string()), "{table}");
    let sent = || -> u64 {
        let text = nodes[0].output("cat", &["/proc/net/dev"]);
        let line = text.lines().find(|line| line.contains("flannel.1"));
        let packets = line.unwrap().split_whitespace().nth(10);
        packets.unwrap().parse().unwrap()
    };
    let before = sent();
    assert!(!nodes[0].reaches(&nodes[1]), "the peers follow the store");
    assert!(sent() > before, "packets still go into the tunnel");

    // A start that finds its containers' subnet taken does not choose another by itself.
    drop(nodes[0].daemon.take());
    let refused = uvxlan::testbed::DaemonProcess::start(
        &nodes[0].program,
        &nodes[0].host,
        &nodes[0].folder,
        nodes[0].flags.iter().map(String::as_str),
    );
    let refused = refused.unwrap().ready(Duration::from_secs(20));
    let said = refused.unwrap_err().to_string();
    assert!(
        said.contains("--allow-renumber") && said.contains("lease release"),
        "{said}"
    );
    nodes[0].flags.push("--allow-renumber".into());
    nodes[0].start_daemon();
    let new = nodes[0].env.unwrap().subnet;
    assert_ne!(new, env.subnet);
    assert!(lab.leases().contains(&key(&nodes[0])));
    eventually("the other host has a route to it", || {
        route(&nodes[1], &new.to_string()).contains("flannel.1")
    });
}

#[test]
fn a_record_that_is_free_again_is_taken_back() {
    need!(possible(&["etcd", "etcdctl"]));
    let lab = Lab::with_config(1);
    let nodes = lab.nodes(&[lab.endpoints(), "--lease-ttl=60".into()]);
    let before = lab.leases();
    let own = key(&nodes[0]);
    lab.ctl(&["put", &own, FOREIGN_LEASE]);
    eventually("it is logged", || {
        nodes[0].status()["datastore"]["lease"] == "taken"
    });
    lab.ctl(&["del", &own]);
    eventually("it is ours again", || {
        lab.leases() == before && nodes[0].status()["datastore"]["lease"] == "held"
    });
    eventually("the containers reach each other again", || {
        nodes[0].reaches(&nodes[1]) && nodes[1].reaches(&nodes[0])
    });
    losing_nothing(&nodes, || std::thread::sleep(Duration::from_secs(1)));
}

#[test]
fn an_outage_longer_than_the_ttl_costs_nothing() {
    need!(possible(&["etcd", "etcdctl"]));
    let mut lab = Lab::with_config(1);
    let nodes = lab.nodes(&[lab.endpoints(), "--lease-ttl=8".into()]);
    let before = lab.leases();
    losing_nothing(&nodes, || {
        lab.members[0].kill();
        std::thread::sleep(Duration::from_secs(14));
        lab.members[0].start();
        lab.wait();
        for node in &nodes {
            eventually("the lease is held again", || {
                node.status()["datastore"]["lease"] == "held"
            });
        }
        assert_eq!(lab.leases(), before, "the same subnets");
        // And kept alive.
        std::thread::sleep(Duration::from_secs(10));
        lab.news_arrive(&nodes[0]);
        lab.news_arrive(&nodes[1]);
    });
    assert_eq!(lab.leases(), before);
}
