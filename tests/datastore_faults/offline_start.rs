//! A daemon that is killed and restarted while etcd is down starts from its offline cache.

use std::time::Duration;

use super::lab::{Lab, losing_nothing};

use crate::support::need;
use crate::support::nodes::{NodeUnderTest, eventually, possible};

/// Whether the node's offline cache has this subnet as a peer's.
fn is_cached(node: &NodeUnderTest, subnet: &str) -> bool {
    let text = std::fs::read_to_string(node.folder.join("state/network.json"));
    let text = text.unwrap_or_default();
    text.split("\"peers\"")
        .nth(1)
        .is_some_and(|peers| peers.contains(subnet))
}

fn kill_and_restart(node: &mut NodeUnderTest) {
    // SIGKILL; the device goes with the process.
    drop(node.daemon.take());
    node.start_daemon();
}

#[test]
fn a_daemon_killed_while_etcd_is_down_forwards_again_and_follows_it_later() {
    need!(possible(&["etcd", "etcdctl"]));
    let mut lab = Lab::with_config(1);
    let flags = [lab.endpoints(), "--lease-ttl=60".into()];
    let mut nodes = lab.nodes(&flags);
    let before = lab.leases();
    let subnets = [0, 1].map(|n: usize| nodes[n].env.unwrap().subnet.to_string());
    eventually("each has the other in its cache", || {
        is_cached(&nodes[0], &subnets[1]) && is_cached(&nodes[1], &subnets[0])
    });

    lab.members[0].kill();
    kill_and_restart(&mut nodes[0]);
    eventually("the containers reach each other", || {
        nodes[0].reaches(&nodes[1]) && nodes[1].reaches(&nodes[0])
    });
    assert_eq!(nodes[0].env.unwrap().subnet.to_string(), subnets[0]);
    let log = nodes[0].log();
    assert!(log.contains("event=\"offline_start\""), "{log}");
    assert!(log.contains("age_seconds="), "{log}");
    let now = nodes[0].status();
    assert_eq!(now["datastore"]["lease"], "unconfirmed", "{now}");
    assert!(now["datastore"]["memory_seconds"].is_u64(), "{now}");
    assert!(now["datastore"]["heard_seconds_ago"].is_null(), "{now}");
    // Once more, from a cache that no store has confirmed since.
    kill_and_restart(&mut nodes[0]);
    eventually("they reach each other again", || {
        nodes[0].reaches(&nodes[1])
    });

    losing_nothing(&nodes, || {
        lab.members[0].start();
        lab.wait();
        lab.news_arrive(&nodes[0]);
        eventually("the lease is held", || {
            nodes[0].status()["datastore"]["lease"] == "held"
        });
        let now = nodes[0].status();
        assert!(now["datastore"]["memory_seconds"].is_null(), "{now}");
        lab.news_arrive(&nodes[1]);
    });
    assert_eq!(lab.leases(), before, "the same leases");

    // The cache is not used for another prefix, nor with --fail-fast.
    lab.members[0].kill();
    drop(nodes[0].daemon.take());
    let another = |flag: &str| {
        let mut command = std::process::Command::new(crate::support::nodes::PROGRAM);
        command
            .args([
                "run",
                &flags[0],
                flag,
                "--iface=eth0",
                "--metrics-listen=off",
            ])
            .arg(format!(
                "--subnet-file={}",
                nodes[0].folder.join("subnet.env").display()
            ))
            .arg(format!(
                "--state-dir={}",
                nodes[0].folder.join("state").display()
            ))
            .arg(format!(
                "--control-socket={}",
                nodes[0].folder.join("other").display()
            ));
        let command = uvxlan::sys::process::dies_with_parent(command);
        nodes[0].host.namespace().command(command)
    };
    let output = another("--fail-fast").output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    let stderr = std::process::Stdio::piped();
    let mut child = another("--etcd-prefix=/other")
        .stderr(stderr)
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(8));
    let link = nodes[0].output("ip", &["link", "show", "flannel.1"]);
    assert_eq!(link, "", "it waits");
    child.kill().unwrap();
    let said = child.wait_with_output().unwrap().stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("of another store"), "{said}");
}

#[test]
fn cached_peers_outlive_a_store_that_comes_back_empty() {
    need!(possible(&["etcd", "etcdctl"]));
    let mut lab = Lab::with_config(1);
    let flags = [
        lab.endpoints(),
        "--lease-ttl=60".into(),
        "--mass-delete-hold=12".into(),
    ];
    let mut nodes = lab.nodes(&flags);
    let before = lab.leases();
    let other = nodes[1].env.unwrap().subnet.to_string();
    eventually("its cache has the other", || is_cached(&nodes[0], &other));
    // The other cannot write its record again before the first complete list was read.
    lab.members[0].kill();
    lab.members[0].wipe();
    let mut other = nodes[1].daemon.take().map(|daemon| {
        let pid = i32::try_from(daemon.pid()).unwrap();
        (daemon, rustix::process::Pid::from_raw(pid).unwrap())
    });
    kill_and_restart(&mut nodes[0]);
    eventually("the containers reach each other", || {
        nodes[0].reaches(&nodes[1])
    });
    let signal = |signal| rustix::process::kill_process(other.as_ref().unwrap().1, signal).unwrap();
    signal(rustix::process::Signal::STOP);
    lab.members[0].start();
    lab.wait();
    eventually("the guard holds the cached peers", || {
        nodes[0].log().contains("event=\"leases_missing\"")
    });
    let routed = nodes[0].output(
        "ip",
        &["route", "show", &nodes[1].env.unwrap().subnet.to_string()],
    );
    assert!(routed.contains("flannel.1"), "{routed}");
    signal(rustix::process::Signal::CONT);
    eventually("both are in the store again, with the same subnets", || {
        lab.leases() == before
    });
    nodes[1].daemon = other.take().map(|(daemon, _)| daemon);
    losing_nothing(&nodes, || std::thread::sleep(Duration::from_secs(14)));
    lab.put_config();
    lab.news_arrive(&nodes[0]);
}
