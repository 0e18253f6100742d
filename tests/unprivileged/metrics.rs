//! The list of metrics, the alert rules and the Grafana dashboard.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::nodes::promtool;

/// A page with every metric.
fn full_page() -> String {
    let status: uvxlan::control::Status = serde_json::from_value(serde_json::json!({
        "phase": "serving", "version": "1", "pid": 1, "uptime_seconds": 1, "node": null,
        "datastore": {"place": "", "lease": "held", "detail": null, "heard_seconds_ago": 1,
            "lease_ends_in_seconds": 2, "resyncs": [["watch", 1]]},
        "packet_loop": {
            "workers": 1, "offloads": "", "lacking": [], "peer_check": "enforce",
            "batches": [{"call": "send", "sizes": {"sum": 3.0, "counts": [[1.0, 1], [null, 1]]}}]
        },
        "round_trips": {"sum": 1.0, "counts": [[1.0, 1], [null, 1]]},
        "mended": [["routes", 1]],
        "refused": [], "refused_total": [["key", 1]],
        "peers": [{
            "subnet": "10.5.1.0/24", "public_ip": "192.0.2.1", "vtep_mac": "", "way": "tunnel",
            "state": "ok", "rtt_us": 1, "loss_percent": 0, "loss_out_percent": 0,
            "path_mtu": 1450,
            "seen_seconds_ago": 1, "out_packets": 1, "out_bytes": 1, "in_packets": 1,
            "in_bytes": 1
        }],
        "counters": [
            {"name": "out_no_route", "kind": "drop-out", "value": 1},
            {"name": "send_calls", "kind": "event", "value": 1}
        ]
    }))
    .unwrap();
    uvxlan::daemon::api::metrics::Exporter::default().render(&status)
}

#[test]
fn the_list_of_metrics_is_complete() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = std::fs::read_to_string(root.join("docs/metrics.md")).unwrap();
    let rows = guide.lines().filter_map(|line| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
        let name = name.split('{').next().unwrap();
        Some(format!("{name} {}", cells.next()?))
    });
    let listed: BTreeSet<_> = rows.collect();
    // OpenMetrics describes a counter without the suffix of its samples.
    let page = full_page();
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let told: BTreeSet<_> = types
        .map(|line| match line.strip_suffix(" counter") {
            Some(name) => format!("{name}_total counter"),
            None => line.to_owned(),
        })
        .collect();
    assert_eq!(listed, told);
}

/// Alerts and panels with metrics that the page does not have would never fire and never show.
#[test]
fn alert_rules_and_dashboard_name_existing_metrics() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let page = full_page();
    let board = read("grafana.json");
    let _: Value = serde_json::from_str(&board).unwrap();
    let rules = read("alerts.yml");
    for text in [&rules, &board] {
        let mut names: Vec<&str> = text
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .filter(|word| word.starts_with("uvxlan_") || word.starts_with("process_"))
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
    let path = |name: &str| format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    promtool(&["check", "rules", &path("monitoring/alerts.yml")], "");
    promtool(
        &["test", "rules", &path("tests/unprivileged/alerts.yml")],
        "",
    );
}
