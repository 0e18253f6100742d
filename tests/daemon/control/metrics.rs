//! The metrics page for Prometheus.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::lab;

use crate::support::need;
use crate::support::nodes::{NodeUnderTest, TIMEOUT, eventually, possible, promtool};

/// The page in its default format.
fn page(node: &NodeUnderTest) -> String {
    let read = node.host.namespace().run(|| {
        let mut stream = TcpStream::connect("127.0.0.1:9472").unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let text = read.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Sum of all samples whose name and labels have this prefix.
fn sum(page: &str, series: &str) -> f64 {
    page.lines()
        .filter(|line| line.starts_with(series))
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
        .sum()
}

/// Whether a condition becomes true in time.
fn within(mut check: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + TIMEOUT;
    while !check() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

#[test]
fn prometheus_finds_the_metrics() {
    need!(possible(&["ip"]));
    let lab = lab();
    lab.a.transfer(&lab.b, 1 << 20);
    eventually("a probe is on the page", || {
        sum(&page(&lab.a), "uvxlan_probe_rtt_seconds_count") > 0.0
            && page(&lab.a).contains("uvxlan_peer_rtt_seconds{peer=")
    });
    let body = page(&lab.a);
    for line in [
        "uvxlan_serving 1",
        "uvxlan_peers{state=\"ok\"} 1",
        "uvxlan_lease_held 1",
        "uvxlan_datastore_connected 1",
        "uvxlan_gso_fallbacks_total{reason=\"send\"} 0",
        "uvxlan_reconcile_changes_total{kind=\"routes\"} 0",
    ] {
        assert!(
            body.lines().any(|found| found.starts_with(line)),
            "{line}\n{body}"
        );
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let near = |series: &str, from_now: f64| {
        let away = sum(&body, series) - now.as_secs_f64() - from_now;
        assert!(away.abs() < 120.0, "{series} is {away} s off\n{body}");
    };
    near("uvxlan_datastore_last_sync_timestamp_seconds", 0.0);
    near("uvxlan_lease_expiry_timestamp_seconds", 86_400.0);
    near("process_start_time_seconds", 0.0);
    assert!(sum(&body, "process_resident_memory_bytes") > 1e6, "{body}");
    promtool(&["check", "metrics"], &body);
}

#[test]
fn every_packet_is_on_the_page_under_one_name() {
    need!(possible(&["ip"]));
    let lab = lab();
    let (a, b) = (&lab.a, &lab.b);
    a.transfer(b, 4 << 20);
    // Outbound without a peer; inbound from a peer, too short for VXLAN.
    a.change(&["route", "add", "10.5.252.0/24", "dev", "flannel.1"]);
    let _ = a.output(
        "ping",
        &["-c3", "-i0.1", "-W1", "-I", "flannel.1", "10.5.252.9"],
    );
    let to = (a.host.address(), 8472);
    let sent = b.host.namespace().run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        (0..3).try_for_each(|_| socket.send_to(&[8; 8], to).map(drop))
    });
    sent.unwrap().unwrap();
    let dropped = |dir: &str, page: &str| sum(page, &format!("uvxlan_drops_total{{dir=\"{dir}\""));
    let mut last = String::new();
    let adds_up = within(|| {
        let page = page(a);
        last.clone_from(&page);
        let out = sum(&page, "uvxlan_encap_packets_total ") + dropped("out", &page);
        let inward = sum(&page, "uvxlan_decap_packets_total ")
            + sum(&page, "uvxlan_probe_packets_total ")
            + dropped("in", &page);
        dropped("out", &page) >= 3.0
            && dropped("in", &page) >= 3.0
            && (sum(&page, "uvxlan_tun_read_packets_total ") - out).abs() < 0.5
            && (sum(&page, "uvxlan_udp_read_packets_total ") - inward).abs() < 0.5
    });
    let page = last;
    assert!(adds_up, "the drops are missing, or do not add up:\n{page}");
    // Bytes are those of the inner packets: the transfer and its headers.
    let sent = sum(&page, "uvxlan_encap_bytes_total ");
    let of_peers =
        sum(&page, "uvxlan_peer_bytes_total{peer=\"") - sum(&page, "uvxlan_decap_bytes_total ");
    assert!(sent > f64::from(4 << 20), "{page}");
    assert!(
        (sent / of_peers - 1.0).abs() < 0.05,
        "{sent} {of_peers}\n{page}"
    );
    for call in ["send", "receive", "write"] {
        let all = |what: &str| {
            sum(
                &page,
                &format!("uvxlan_batch_size_{what}{{call=\"{call}\"}}"),
            )
        };
        assert!(
            all("count") > 0.0 && all("sum") >= all("count"),
            "{call}\n{page}"
        );
    }
}
