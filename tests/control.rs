//! Asking a running daemon: status, trace, metrics.

#[path = "support/nodes.rs"]
mod nodes;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use nodes::{NodeUnderTest, PROGRAM, eventually, need, possible};
use serde_json::Value;
use uvxlan::testbed::Topology;

/// Two nodes on a directory store that both see.
struct Lab {
    _topology: Topology,
    folder: tempfile::TempDir,
    a: NodeUnderTest,
    b: NodeUnderTest,
}

impl Lab {
    fn new() -> Self {
        let topology = Topology::two_hosts().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        std::fs::create_dir_all(store.join("subnets")).unwrap();
        std::fs::write(store.join("config"), nodes::CONFIG).unwrap();
        let flags = [
            format!("--store=dir:{}", store.display()),
            "--probe-interval=1".to_owned(),
        ];
        let (one, two) = topology.pair().unwrap();
        let a = NodeUnderTest::start(one, folder.path(), &flags);
        let b = NodeUnderTest::start(two, folder.path(), &flags);
        eventually("the containers reach each other", || a.reaches(&b));
        Self {
            _topology: topology,
            folder,
            a,
            b,
        }
    }

    fn put(&self, name: &str, value: &str) {
        let path = self.folder.path().join("store/subnets").join(name);
        std::fs::write(path, value).unwrap();
    }
}

fn socket(node: &NodeUnderTest) -> PathBuf {
    node.folder.join("control")
}

/// Runs a command of ours against a node's daemon, in the node's namespace.
fn ask(node: &NodeUnderTest, arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command
        .args(arguments)
        .arg("--control-socket")
        .arg(socket(node));
    node.host.namespace().command(command).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn status(node: &NodeUnderTest) -> Value {
    let output = ask(node, &["status", "--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn without_flags_the_daemon_that_runs_here_is_asked() {
    need!(possible(&["ip"]));
    let lab = Lab::new();
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
fn status_tells_node_peers_and_drops() {
    need!(possible(&["ip"]));
    let lab = Lab::new();
    let (a, b) = (&lab.a, &lab.b);
    let env = a.env.unwrap();
    eventually("the peer is probed", || {
        let peer = &status(a)["peers"][0];
        peer["rtt_us"].as_u64().is_some() && peer["path_mtu"] == 1450
    });
    a.transfer(b, 1 << 20);
    let now = status(a);
    assert_eq!(now["phase"], "serving");
    assert_eq!(now["node"]["subnet"], env.subnet.to_string());
    assert_eq!(now["node"]["public_ip"], a.host.address().to_string());
    assert_eq!(now["node"]["device"], "flannel.1");
    assert_eq!(now["datastore"]["lease"], "held");
    assert_eq!(now["pid"], a.daemon.as_ref().unwrap().pid());
    assert_eq!(now["peers"].as_array().unwrap().len(), 1);
    let peer = &now["peers"][0];
    assert_eq!(peer["subnet"], b.env.unwrap().subnet.to_string());
    assert_eq!(
        (peer["state"].as_str(), peer["way"].as_str()),
        (Some("ok"), Some("tunnel"))
    );
    assert!(peer["out_bytes"].as_u64().unwrap() > 1 << 20, "{peer}");
    assert!(peer["in_packets"].as_u64().unwrap() > 0, "{peer}");

    // The invariant holds in what is shown, when nothing is on the way.
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
        let counters = &status(a)["counters"];
        value(counters, "tun_read") == value(counters, "sent") + drops(counters, "drop-out")
            && value(counters, "udp_read")
                == value(counters, "delivered")
                    + value(counters, "probes_in")
                    + drops(counters, "drop-in")
    });

    // For people: a packet without lease, and a record that is refused.
    lab.put(
        "10.5.251.0-24",
        r#"{"PublicIP":"127.0.0.1","BackendType":"vxlan"}"#,
    );
    let nowhere = "10.5.252.9";
    let _ = a.output("ping", &["-c1", "-W1", "-I", "flannel.1", nowhere]);
    eventually("they are shown", || {
        let shown = text(&ask(a, &["status"]));
        shown.contains("REFUSED RECORDS (1)") && shown.contains("10.5.251.0-24")
    });
    let shown = text(&ask(a, &["status"]));
    for words in [
        "serving 10.5.",
        "lease held",
        "PEERS (1)",
        "tunnel",
        "peer check enforce",
    ] {
        assert!(shown.contains(words), "{words}:\n{shown}");
    }
    assert!(!shown.contains('\u{1b}'), "no colours where nobody looks");
}

#[test]
fn a_silent_peer_is_called_silent_and_ok_again() {
    need!(possible(&["ip"]));
    let lab = Lab::new();
    let state = || {
        status(&lab.a)["peers"][0]["state"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    eventually("it is there", || state() == "ok");
    lab.b.change(&["link", "set", "eth0", "down"]);
    eventually("it is silent", || state() == "silent");
    lab.b.change(&["link", "set", "eth0", "up"]);
    eventually("it is back", || state() == "ok");
}

#[test]
fn trace_tells_where_a_packet_goes_and_where_it_ends() {
    need!(possible(&["ip"]));
    let lab = Lab::new();
    let (a, b) = (&lab.a, &lab.b);
    let trace = |to: &str| {
        let output = ask(a, &["trace", to]);
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
    let (code, said) = trace(&a.container().address().to_string());
    assert!(code == 0 && said.contains("our own subnet"), "{said}");
    let (code, said) = trace("10.5.252.9");
    assert!(code == 1 && said.contains("no lease covers"), "{said}");
    let (code, said) = trace("198.51.100.1");
    assert!(
        code == 1 && said.contains("outside of the overlay"),
        "{said}"
    );
    lab.put(
        "10.5.251.0-24",
        r#"{"PublicIP":"127.0.0.1","BackendType":"vxlan"}"#,
    );
    eventually("the refused record is named", || {
        trace("10.5.251.3")
            .1
            .contains("record 10.5.251.0-24 is refused")
    });
    // A route of somebody else's in the way.
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
    let lab = Lab::new();
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
        // It may stop listening before all of it is sent.
        let _ = stream.write_all(request);
        let mut answer = String::new();
        let _ = BufReader::new(stream).read_line(&mut answer);
        assert!(answer.contains(expected), "{answer}");
    }
    // Somebody who never says anything, many times, is in nobody's way.
    let idle: Vec<_> = (0..10)
        .map(|_| UnixStream::connect(&path).unwrap())
        .collect();
    assert_eq!(status(&lab.a)["phase"], "serving");
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
    eventually("it says what it waits for", || {
        status().contains("waiting for the network config")
    });
    drop(daemon);
}

#[test]
fn prometheus_finds_the_metrics() {
    need!(possible(&["ip"]));
    let lab = Lab::new();
    lab.a.transfer(&lab.b, 1 << 20);
    let page = || {
        let namespace = lab.a.host.namespace();
        let read = namespace.run(|| {
            let mut stream = TcpStream::connect("127.0.0.1:9472").unwrap();
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        });
        read.unwrap()
    };
    eventually("a probe is on the page", || {
        page().contains("uvxlan_probe_rtt_seconds{peer=")
    });
    let text = page();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let body = text.split_once("\r\n\r\n").unwrap().1;
    for line in [
        "uvxlan_serving 1",
        "uvxlan_peers{state=\"ok\"} 1",
        "uvxlan_lease_held 1",
    ] {
        assert!(
            body.lines().any(|found| found.starts_with(line)),
            "{line}\n{body}"
        );
    }
    // Prometheus' own opinion, where it is installed.
    if let Err(reason) = possible(&["promtool"]) {
        uvxlan::testbed::skipped(reason);
        return;
    }
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    check
        .stdin
        .take()
        .unwrap()
        .write_all(body.as_bytes())
        .unwrap();
    let output = check.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn ping_asks_peers_and_containers_with_small_and_large_packets() {
    need!(possible(&["ip"]));
    let lab = Lab::new();
    let (a, b) = (&lab.a, &lab.b);
    let ping = |to: &str| {
        let output = ask(a, &["ping", to, "-c", "4", "-i", "0.05"]);
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
        assert!(said.contains(" 1450 bytes there and back"), "{said}");
    }
    let (code, said) = ping("10.5.252.9");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("behind no peer"), "{said}");
}

/// A terminal of its own; closed when dropped.
struct Tmux {
    socket: PathBuf,
}

impl Tmux {
    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .env_remove("TMUX")
            .env("TERM", "xterm")
            .env("LC_ALL", "C.UTF-8")
            .arg("-S")
            .arg(&self.socket)
            .args(arguments)
            .output()
            .unwrap();
        text(&output)
    }

    fn screen(&self) -> String {
        self.run(&["capture-pane", "-p"])
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        self.run(&["kill-server"]);
    }
}

#[test]
fn top_lives_in_a_terminal_and_listens_to_its_keys() {
    need!(possible(&["ip"]));
    if Command::new("tmux").arg("-V").output().is_err() {
        uvxlan::testbed::skipped("no program tmux");
        return;
    }
    let lab = Lab::new();
    let tmux = Tmux {
        socket: lab.folder.path().join("tmux"),
    };
    let command = format!(
        "{PROGRAM} top --interval 0.3 --control-socket {}; echo left with $?; sleep 60",
        socket(&lab.a).display()
    );
    tmux.run(&["new-session", "-d", "-x", "120", "-y", "40", &command]);
    let subnet = lab.b.env.unwrap().subnet.to_string();
    eventually("the peer is on the screen", || {
        tmux.screen().contains(&subnet)
    });
    lab.a.transfer(&lab.b, 4 << 20);
    eventually("traffic was seen", || {
        let screen = tmux.screen();
        screen.contains("to peers") && screen.contains("by traffic")
    });
    tmux.run(&["send-keys", "s"]);
    eventually("another order", || tmux.screen().contains("by round trip"));
    tmux.run(&["send-keys", "p"]);
    eventually("a pause", || tmux.screen().contains("PAUSED"));
    tmux.run(&["send-keys", "q"]);
    eventually("it ends well, and the terminal is as before", || {
        tmux.screen().contains("left with 0")
    });
    // Not for a pipe.
    let output = ask(&lab.a, &["top"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_daemon_that_cannot_be_asked_forwards_all_the_same() {
    need!(possible(&["ip"]));
    let topology = Topology::two_hosts().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    std::fs::create_dir_all(store.join("subnets")).unwrap();
    std::fs::write(store.join("config"), nodes::CONFIG).unwrap();
    let (one, two) = topology.pair().unwrap();
    // The metrics port is taken, and where the socket would be is a directory.
    let _taken = one
        .namespace()
        .run(|| std::net::TcpListener::bind("127.0.0.1:9472").unwrap())
        .unwrap();
    std::fs::create_dir_all(folder.path().join("host-a/control/full")).unwrap();
    let flags = [format!("--store=dir:{}", store.display())];
    let a = NodeUnderTest::start(one, folder.path(), &flags);
    let b = NodeUnderTest::start(two, folder.path(), &flags);
    eventually("the containers reach each other", || a.reaches(&b));
    let log = a.log();
    assert!(
        log.contains("no_metrics") && log.contains("no_control_socket"),
        "{log}"
    );
}

/// Metrics that the alert rules and the board name, and the page does not have, would never
/// fire and never show.
#[test]
fn alert_rules_and_board_name_metrics_that_there_are() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let status: uvxlan::control::Status = serde_json::from_value(serde_json::json!({
        "phase": "serving", "version": "1", "pid": 1, "uptime_seconds": 1, "node": null,
        "datastore": {"place": "", "lease": "held", "detail": null, "heard_seconds_ago": 1},
        "packet_loop": null, "refused": [], "refused_total": [["key", 1]],
        "peers": [{
            "subnet": "10.5.1.0/24", "public_ip": "192.0.2.1", "vtep_mac": "", "way": "tunnel",
            "state": "ok", "rtt_us": 1, "loss_percent": 0, "path_mtu": 1450,
            "seen_seconds_ago": 1, "out_packets": 1, "out_bytes": 1, "in_packets": 1,
            "in_bytes": 1
        }],
        "counters": [{"name": "out_no_route", "kind": "drop-out", "value": 1}]
    }))
    .unwrap();
    let page = uvxlan::daemon::metrics::page(&status);
    let board = read("grafana.json");
    let _: Value = serde_json::from_str(&board).unwrap();
    let rules = read("alerts.yml");
    for text in [&rules, &board] {
        let mut names: Vec<&str> = text
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .filter(|word| word.starts_with("uvxlan_"))
            .collect();
        names.sort_unstable();
        names.dedup();
        assert!(names.len() > 4, "{names:?}");
        for name in names {
            let found = page.lines().any(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            });
            assert!(found, "no metric {name} on the page:\n{page}");
        }
    }
    if let Err(reason) = possible(&["promtool"]) {
        uvxlan::testbed::skipped(reason);
        return;
    }
    let check = Command::new("promtool")
        .args(["check", "rules"])
        .arg(folder.join("alerts.yml"))
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
}
