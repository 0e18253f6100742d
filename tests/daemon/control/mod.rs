//! Requests to a running daemon: status, trace, metrics.

mod metrics;
mod terminal;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use uvxlan::testbed::Topology;

use crate::support::directory::{DirectoryStore, NodePair};
use crate::support::need;
use crate::support::nodes::{self, NodeUnderTest, PROGRAM, eventually, possible};

fn lab() -> NodePair {
    NodePair::start(2, &["--probe-interval=1"])
}

fn socket(node: &NodeUnderTest) -> PathBuf {
    node.folder.join("control")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn without_flags_the_daemon_that_runs_here_is_asked() {
    need!(possible(&["ip"]));
    let lab = lab();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).env_remove("UVXLAN_STORE");
        let output = lab.a.host.namespace().command(command).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        text(&output)
    };
    let subnet = lab.a.env.unwrap().subnet.to_string();
    assert!(run(&["status"]).contains(&subnet));
    // The store is the daemon's directory, not etcd.
    assert!(run(&["lease", "list"]).contains(&subnet));
    assert!(run(&["config", "show"]).contains("10.5.0.0/16"));
    assert!(run(&["doctor"]).contains("0 errors"));
}

#[test]
fn status_shows_node_peers_and_drops() {
    need!(possible(&["ip"]));
    let lab = lab();
    let (a, b) = (&lab.a, &lab.b);
    let env = a.env.unwrap();
    eventually("the peer is probed", || {
        let peer = &a.status()["peers"][0];
        peer["rtt_us"].as_u64().is_some() && peer["path_mtu"] == 1450
    });
    a.transfer(b, 1 << 20);
    let now = a.status();
    assert_eq!(now["phase"], "serving");
    assert_eq!(now["node"]["subnet"], env.subnet.to_string());
    assert_eq!(now["node"]["public_ip"], a.host.address().to_string());
    assert_eq!(now["node"]["device"], "flannel.1");
    assert_eq!(now["datastore"]["lease"], "held");
    assert_eq!(now["pid"], a.daemon.as_ref().unwrap().pid());
    // The rest of the first lines, compared with the kernel and the store.
    let lease = lab.store.path().join("subnets");
    let lease = lease.join(env.subnet.to_string().replace('/', "-"));
    let lease: Value = serde_json::from_slice(&std::fs::read(lease).unwrap()).unwrap();
    assert_eq!(now["node"]["vtep_mac"], lease["BackendData"]["VtepMAC"]);
    assert_eq!(now["node"]["mtu"], 1450);
    assert_eq!(now["node"]["interface"], "eth0");
    assert_eq!(now["node"]["interface_mtu"], 1500);
    assert!(now["datastore"]["heard_seconds_ago"].as_u64().unwrap() < 600);
    let left = now["datastore"]["lease_ends_in_seconds"].as_u64().unwrap();
    assert!((86_000..=86_400).contains(&left), "{left}");
    let pid = now["pid"].to_string();
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = threads.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
    let workers = names.filter(|name| name.as_ref().unwrap().starts_with("uvxlan-"));
    assert_eq!(now["packet_loop"]["workers"], workers.count());
    let offloads = now["packet_loop"]["offloads"].as_str().unwrap();
    let known = ["read", "send", "receive", "write", "none"];
    assert!(
        offloads.split(',').all(|part| known.contains(&part)),
        "{offloads}"
    );
    assert!(!offloads.is_empty());
    assert_eq!(now["peers"].as_array().unwrap().len(), 1);
    let peer = &now["peers"][0];
    assert_eq!(peer["subnet"], b.env.unwrap().subnet.to_string());
    assert_eq!(
        (peer["state"].as_str(), peer["way"].as_str()),
        (Some("ok"), Some("tunnel"))
    );
    assert!(peer["out_bytes"].as_u64().unwrap() > 1 << 20, "{peer}");
    assert!(peer["in_packets"].as_u64().unwrap() > 0, "{peer}");
    assert_eq!(peer["public_ip"], b.host.address().to_string());
    eventually("a packet from it arrived, and a probe was answered", || {
        let peer = &a.status()["peers"][0];
        peer["seen_seconds_ago"]
            .as_u64()
            .is_some_and(|ago| ago <= 10)
            && peer["rtt_us"].as_u64().is_some_and(|rtt| rtt > 0)
            && peer["loss_percent"] == 0
    });

    // The displayed counters satisfy the invariant when no packet is in flight.
    let value = |counters: &Value, name: &str| {
        let counters = counters.as_array().unwrap();
        let found = counters.iter().find(|counter| counter["name"] == name);
        found.unwrap()["value"].as_u64().unwrap()
    };
    let drops = |counters: &Value, kind: &str| -> u64 {
        let counters = counters.as_array().unwrap().iter();
        let drops = counters.filter(|counter| counter["kind"] == kind);
        drops
            .map(|counter| counter["value"].as_u64().unwrap())
            .sum()
    };
    eventually("the counters add up", || {
        let counters = &a.status()["counters"];
        value(counters, "tun_read") == value(counters, "sent") + drops(counters, "drop-out")
            && value(counters, "udp_read")
                == value(counters, "delivered")
                    + value(counters, "probes_in")
                    + drops(counters, "drop-in")
    });

    // For users: a packet without a lease, and a record that is refused.
    lab.store.put(
        "subnets/10.5.251.0-24",
        r#"{"PublicIP":"127.0.0.1","BackendType":"vxlan"}"#,
    );
    let nowhere = "10.5.252.9";
    let _ = a.output("ping", &["-c1", "-W1", "-I", "flannel.1", nowhere]);
    eventually("they are shown", || {
        let shown = text(&a.ask(&["status"]));
        shown.contains("REFUSED RECORDS (1)") && shown.contains("10.5.251.0-24")
    });
    let shown = text(&a.ask(&["status"]));
    for words in [
        "serving 10.5.",
        "lease held",
        "PEERS (1)",
        "tunnel",
        "peer check enforce",
        "offloads ",
        " workers",
        " left), last heard ",
        "VTEP ",
    ] {
        assert!(shown.contains(words), "{words}:\n{shown}");
    }
    assert!(!shown.contains('\u{1b}'), "no colours without a terminal");
}

#[test]
fn a_silent_peer_is_called_silent_and_ok_again() {
    need!(possible(&["ip"]));
    let lab = lab();
    let state = || {
        lab.a.status()["peers"][0]["state"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    eventually("it is reachable", || state() == "ok");
    lab.b.change(&["link", "set", "eth0", "down"]);
    eventually("it is silent", || state() == "silent");
    lab.b.change(&["link", "set", "eth0", "up"]);
    eventually("it is reachable again", || state() == "ok");
}

#[test]
fn a_peer_that_hears_nothing_is_called_one_way() {
    need!(possible(&["ip", "iptables"]));
    let lab = lab();
    let state = |node: &NodeUnderTest| {
        let state = &node.status()["peers"][0]["state"];
        state.as_str().unwrap().to_owned()
    };
    eventually("both are reachable", || {
        state(&lab.a) == "ok" && state(&lab.b) == "ok"
    });
    let rule = |change: &str| {
        let rule = [
            change, "INPUT", "-p", "udp", "--dport", "8472", "-j", "DROP",
        ];
        lab.b.output("iptables", &rule);
    };
    rule("-I");
    eventually("the other side receives nothing, but is received", || {
        state(&lab.a) == "one-way" && state(&lab.b) == "silent"
    });
    let shown = text(&lab.a.ask(&["status"]));
    assert!(shown.contains("one-way: packets arrive from it"), "{shown}");
    rule("-D");
    eventually("both are reachable again", || {
        state(&lab.a) == "ok" && state(&lab.b) == "ok"
    });
}

#[test]
fn trace_shows_where_a_packet_goes_and_where_it_ends() {
    need!(possible(&["ip"]));
    let lab = lab();
    let (a, b) = (&lab.a, &lab.b);
    let trace = |to: &str| {
        let output = a.ask(&["trace", to]);
        (output.status.code().unwrap(), text(&output))
    };
    let there = b.container().address().to_string();
    let (code, said) = trace(&there);
    assert_eq!(code, 0, "{said}");
    for words in [
        &format!("leased by {}", b.host.address()),
        "dev flannel.1",
        "dev eth0",
        "from port",
        "up to 1450 bytes",
        "passes the peer check",
    ] {
        assert!(said.contains(words), "{words}:\n{said}");
    }
    let output = a.ask(&["trace", "--json", &there]);
    let steps: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<_> = steps.as_array().unwrap().iter().collect();
    assert!(names.iter().all(|step| step["passes"] == true), "{steps:#}");
    let names: Vec<_> = names.iter().map(|step| step["name"].as_str()).collect();
    let lease = names.iter().position(|name| *name == Some("lease"));
    let back = names.iter().position(|name| *name == Some("way back"));
    assert!(lease.is_some() && lease < back, "{steps:#}");
    let (code, said) = trace(&a.container().address().to_string());
    assert!(code == 0 && said.contains("our own subnet"), "{said}");
    let output = a.ask(&["trace", "--json", "10.5.252.9"]);
    let steps: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(steps[1]["passes"], false, "{steps:#}");
    assert_eq!(output.status.code(), Some(1));
    let (code, said) = trace("10.5.252.9");
    assert!(code == 1 && said.contains("no lease covers"), "{said}");
    let (code, said) = trace("198.51.100.1");
    assert!(
        code == 1 && said.contains("outside of the overlay"),
        "{said}"
    );
    lab.store.put(
        "subnets/10.5.251.0-24",
        r#"{"PublicIP":"127.0.0.1","BackendType":"vxlan"}"#,
    );
    eventually("the refused record is named", || {
        trace("10.5.251.3")
            .1
            .contains("record 10.5.251.0-24 is refused")
    });
    // A foreign route takes precedence.
    a.change(&["route", "add", &format!("{there}/32"), "dev", "eth0"]);
    let (code, said) = trace(&there);
    assert!(
        code == 1 && said.contains("another route is in the way"),
        "{said}"
    );
}

#[test]
fn the_socket_is_for_owner_and_group_and_survives_nonsense() {
    need!(possible(&["ip"]));
    let lab = lab();
    let path = socket(&lab.a);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    for (request, expected) in [
        (&b"{\"v\":1,\"ask\":\"status\"}\n"[..], "\"status\""),
        (b"{\"v\":9,\"ask\":\"status\"}\n", "version 1"),
        (b"GET / HTTP/1.1\r\n\r\n", "error"),
        (&[b'x'; 10_000], "error"),
        (b"\n", "error"),
    ] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        // It may stop reading before all of it is sent.
        let _ = stream.write_all(request);
        let mut answer = String::new();
        let _ = BufReader::new(stream).read_line(&mut answer);
        assert!(answer.contains(expected), "{answer}");
    }
    // Many clients that never send a request do not disturb others.
    let idle: Vec<_> = (0..10)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    assert_eq!(lab.a.status()["phase"], "serving");
    drop(idle);
    let nobody = Command::new(PROGRAM)
        .args(["status", "--control-socket", "/nonexistent/socket"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert_eq!(nobody.status.code(), Some(69), "{error}");
    assert!(
        error.contains("/nonexistent/socket") && error.contains("is one running"),
        "{error}"
    );
}

#[test]
fn a_daemon_that_waits_says_for_what() {
    need!(possible(&["ip"]));
    let topology = Topology::two_hosts().unwrap();
    let host = topology.pair().unwrap().0;
    let folder = tempfile::tempdir().unwrap();
    let flag = format!("--store=dir:{}", folder.path().join("empty").display());
    let program = std::path::Path::new(PROGRAM);
    let daemon =
        uvxlan::testbed::DaemonProcess::start(program, host, folder.path(), [flag.as_str()])
            .unwrap();
    let status = || {
        let output = Command::new(PROGRAM)
            .args(["status", "--control-socket"])
            .arg(folder.path().join("control"))
            .output()
            .unwrap();
        text(&output)
    };
    eventually("the status names what it waits for", || {
        status().contains("waiting for the network config")
    });
    drop(daemon);
}

#[test]
fn ping_asks_peers_and_containers_with_small_and_large_packets() {
    need!(possible(&["ip"]));
    let lab = lab();
    let (a, b) = (&lab.a, &lab.b);
    let ping = |to: &str| {
        let output = a.ask(&["ping", to, "-c", "4", "-i", "0.05"]);
        (output.status.code().unwrap(), text(&output))
    };
    for to in [
        b.host.address().to_string(),
        b.env.unwrap().subnet.to_string(),
        b.container().address().to_string(),
    ] {
        let (code, said) = ping(&to);
        assert!(
            code == 0 && said.contains("4 sent, 4 answered, 0 % lost"),
            "{said}"
        );
        assert!(said.contains(" 1450 bytes: reply in"), "{said}");
    }
    let (code, said) = ping("10.5.252.9");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("behind no known peer"), "{said}");
}

#[test]
fn a_daemon_that_cannot_be_asked_forwards_all_the_same() {
    need!(possible(&["ip"]));
    let topology = Topology::two_hosts().unwrap();
    let store = DirectoryStore::new(nodes::CONFIG);
    let (one, two) = topology.pair().unwrap();
    // The metrics port is taken, and there is a directory where the socket should be.
    let _taken = one
        .namespace()
        .run(|| std::net::TcpListener::bind("127.0.0.1:9472").unwrap())
        .unwrap();
    std::fs::create_dir_all(store.folder.path().join("host-a/control/full")).unwrap();
    let (a, b) = (store.start(one, &[]), store.start(two, &[]));
    eventually("the containers reach each other", || a.reaches(&b));
    let log = a.log();
    assert!(
        log.contains("no_metrics") && log.contains("no_control_socket"),
        "{log}"
    );
}

#[test]
fn every_setting_is_logged_at_start() {
    need!(possible(&["ip"]));
    let topology = Topology::two_hosts().unwrap();
    let host = topology.pair().unwrap().0;
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    std::fs::create_dir_all(store.join("subnets")).unwrap();
    std::fs::write(store.join("config"), nodes::CONFIG).unwrap();
    // With those that every test sets, more than fifteen.
    let flags = [
        &format!("--store=dir:{}", store.display()),
        "--probe-interval=2",
        "--peer-check=log",
        "--iptables-resync=9",
        "--subnet-lease-renew-margin=61",
        "--ip-masq",
        "--healthz-ip=127.0.0.1",
        "--healthz-port=9473",
        "--metrics-listen=127.0.0.1:9474",
        "--mass-delete-hold=31",
        "--allow-peer=198.51.100.0/24",
        "--forward-extra=198.51.101.0/24",
    ]
    .map(str::to_owned);
    let mut node = NodeUnderTest {
        program: PROGRAM.into(),
        host: host.clone(),
        folder: folder.path().join("host-a"),
        flags: flags.to_vec(),
        daemon: None,
        env: None,
        container: None,
    };
    node.start_daemon();
    let log = node.log();
    for flag in flags {
        let name = flag.trim_start_matches("--");
        let name = name.split('=').next().unwrap();
        let told = log
            .lines()
            .any(|line| line.contains("event=\"setting\"") && line.contains(name));
        assert!(told, "{name} is not logged:\n{log}");
    }
    let told = log.matches("event=\"setting\"").count();
    assert!(told >= 15, "{told}:\n{log}");
}
