//! The page for Prometheus, and what is made for it: alert rules and a board.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use serde_json::Value;

use super::Lab;
use super::nodes::{eventually, need, possible};

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
        eprintln!("skipped: {reason}");
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
        eprintln!("skipped: {reason}");
        return;
    }
    let check = Command::new("promtool")
        .args(["check", "rules"])
        .arg(folder.join("alerts.yml"))
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
}
