//! The page for Prometheus: what `uvxlan status` shows, as metrics. Names and units follow
//! Prometheus' naming practices; label sets are bounded.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::control::{Questions, ask};
use crate::control::{Ask, PeerStatus, Reply, Status};

/// Connections at a time; more wait.
const CONNECTIONS: usize = 16;
/// How long one connection may last.
const PATIENCE: Duration = Duration::from_secs(10);
/// Peers with labels of their own; the others are added up as `other`.
const PEERS: usize = 256;
/// The content type of OpenMetrics, which Prometheus asks for.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The content type of the older text format, for everybody else.
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;

/// Listens until the runtime ends; nothing where the address is empty. A daemon without
/// metrics forwards as well, so a failure is only logged.
pub async fn serve(address: &str, questions: Questions) {
    if address.is_empty() {
        return;
    }
    match TcpListener::bind(address).await {
        Ok(listener) => {
            tracing::info!(event = "metrics", address, "answering /metrics");
            tokio::spawn(accept(listener, questions));
        }
        Err(error) => tracing::warn!(
            event = "no_metrics", address, %error,
            "no page for Prometheus (--metrics-listen)"
        ),
    }
}

async fn accept(listener: TcpListener, questions: Questions) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let questions = questions.clone();
                tokio::spawn(async move {
                    // Whoever is slow, or speaks something else, is nobody to report.
                    let _ = tokio::time::timeout(PATIENCE, talk(stream, questions)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(event = "metrics_failed", %error);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn talk(stream: TcpStream, questions: Questions) {
    let service = service_fn(|request: Request<Incoming>| {
        let questions = questions.clone();
        async move { Ok::<_, Infallible>(answer(&request, &questions).await) }
    });
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(request: &Request<Incoming>, questions: &Questions) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response
    };
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {}
        (&Method::GET | &Method::HEAD, _) => {
            return plain(StatusCode::NOT_FOUND, "there is /metrics");
        }
        _ => return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD"),
    }
    let Some(Reply::Status(status)) = ask(questions, Ask::Status).await else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping");
    };
    let accepted = request.headers().get(ACCEPT);
    let accepted = accepted.and_then(|value| value.to_str().ok());
    let (kind, text) = match accepted {
        Some(kinds) if kinds.contains("openmetrics") => (OPENMETRICS, page(&status)),
        _ => (CLASSIC, classic(&page(&status))),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

struct Page(Registry);

impl Page {
    fn gauges(&mut self, name: &str, help: &str) -> Gauges {
        let family = Gauges::default();
        self.0.register(name, help, family.clone());
        family
    }

    fn gauges_in(&mut self, unit: Unit, name: &str, help: &str) -> Gauges {
        let family = Gauges::default();
        self.0.register_with_unit(name, help, unit, family.clone());
        family
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.0.register(name, help, single(value));
    }

    fn gauge_in(&mut self, unit: Unit, name: &str, help: &str, value: f64) {
        self.0.register_with_unit(name, help, unit, single(value));
    }

    fn counters(&mut self, name: &str, help: &str) -> Counters {
        let family = Counters::default();
        self.0.register(name, help, family.clone());
        family
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        self.0.register(name, help, counter);
    }
}

fn single(value: f64) -> Gauge<f64, AtomicU64> {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

/// A status as a page.
#[must_use]
pub fn page(status: &Status) -> String {
    let mut page = Page(Registry::with_prefix("uvxlan"));
    let build = page.gauges("build_info", "Version of the program, always 1");
    let version = vec![("version", status.version.clone())];
    build.get_or_create(&version).set(1.0);
    page.gauge(
        "serving",
        "1 when a subnet is served",
        f64::from(u8::from(status.node.is_some())),
    );
    process(&mut page, status);
    datastore(&mut page, status);
    packets(&mut page, status);
    peers(&mut page, &status.peers);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &page.0);
    text
}

/// An OpenMetrics page in Prometheus' older text format: there a counter is described under
/// the name of its samples, and there are no units and no end.
fn classic(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let counters: BTreeSet<&str> = openmetrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    for line in openmetrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF" | "UNIT"), ..) => continue,
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                text.push_str(&format!("# {what} {name}_total {rest}"));
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

fn process(page: &mut Page, status: &Status) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let start = now.unwrap_or_default().as_secs() as f64 - status.uptime_seconds as f64;
    let help = "Start of the daemon, as Unix time";
    page.gauge_in(Unit::Seconds, "start_time", help, start);
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Option<u64> = statm.split(' ').nth(1).and_then(|text| text.parse().ok());
    if let Some(pages) = pages {
        let size = (pages * rustix::param::page_size() as u64) as f64;
        page.gauge_in(Unit::Bytes, "resident_memory", "Resident memory", size);
    }
}

fn datastore(page: &mut Page, status: &Status) {
    let held = f64::from(u8::from(status.datastore.lease == "held"));
    page.gauge(
        "lease_held",
        "1 when the store says that our lease is ours",
        held,
    );
    if let Some(ago) = status.datastore.heard_seconds_ago {
        let help = "Since the datastore last said something";
        page.gauge_in(Unit::Seconds, "datastore_silence", help, ago as f64);
    }
    let rejected = page.counters(
        "datastore_rejected_records",
        "Records that were not believed, by reason",
    );
    for (reason, count) in &status.refused_total {
        let labels = vec![("reason", reason.clone())];
        rejected.get_or_create(&labels).inc_by(*count);
    }
}

fn packets(page: &mut Page, status: &Status) {
    let value = |name: &str| {
        let counter = status.counters.iter().find(|counter| counter.name == name);
        counter.map_or(0, |counter| counter.value)
    };
    for (name, source, help) in [
        (
            "tun_read_packets",
            "tun_read",
            "Packets read from the device",
        ),
        ("encap_packets", "sent", "Packets sent through the tunnel"),
        (
            "udp_read_packets",
            "udp_read",
            "Packets received from the tunnel",
        ),
        (
            "decap_packets",
            "delivered",
            "Packets written to the device",
        ),
        (
            "probe_packets",
            "probes_in",
            "Probe messages of peers received from the tunnel",
        ),
    ] {
        page.counter(name, help, value(source));
    }
    let drops = page.counters(
        "drops",
        "Packets that went nowhere; tun_read = encap + drops{dir=\"out\"}, udp_read = decap + probe + drops{dir=\"in\"}",
    );
    let events = page.counters("events", "What happened to the packet loop, by name");
    for counter in &status.counters {
        let (family, labels) = match counter.kind.as_str() {
            "drop-out" => (
                &drops,
                vec![("dir", "out".into()), ("reason", counter.name.clone())],
            ),
            "drop-in" => (
                &drops,
                vec![("dir", "in".into()), ("reason", counter.name.clone())],
            ),
            "event" => (&events, vec![("event", counter.name.clone())]),
            _ => continue,
        };
        family.get_or_create(&labels).inc_by(counter.value);
    }
}

fn peers(page: &mut Page, peers: &[PeerStatus]) {
    let states = page.gauges("peers", "Peers by state");
    for state in ["ok", "silent", "unknown", "stale", "blocked"] {
        let count = peers.iter().filter(|peer| peer.state == state).count();
        let labels = vec![("state", state.to_owned())];
        states.get_or_create(&labels).set(count as f64);
    }
    let packets = page.counters("peer_packets", "Inner packets by peer");
    let bytes = page.counters("peer_bytes", "Inner bytes by peer");
    let rtt = page.gauges_in(Unit::Seconds, "probe_rtt", "Last round trip of a probe");
    let loss = page.gauges("probe_loss_ratio", "Unanswered among the latest probes");
    let one_way = page.gauges(
        "probe_one_way_loss_ratio",
        "Lost among the latest probes by direction, where the peer says so",
    );
    let mtu = page.gauges_in(
        Unit::Bytes,
        "path_mtu",
        "Longest packet that a probe carried",
    );
    for (number, peer) in peers.iter().enumerate() {
        let own = number < PEERS;
        let name = if own {
            peer.subnet.to_string()
        } else {
            "other".into()
        };
        let labels = |dir: &str| vec![("peer", name.clone()), ("dir", dir.to_owned())];
        packets
            .get_or_create(&labels("out"))
            .inc_by(peer.out_packets);
        packets.get_or_create(&labels("in")).inc_by(peer.in_packets);
        bytes.get_or_create(&labels("out")).inc_by(peer.out_bytes);
        bytes.get_or_create(&labels("in")).inc_by(peer.in_bytes);
        if !own {
            continue;
        }
        for (dir, value) in [("out", peer.loss_out_percent), ("in", peer.loss_in_percent)] {
            if let Some(value) = value {
                let ratio = f64::from(value) / 100.0;
                one_way.get_or_create(&labels(dir)).set(ratio);
            }
        }
        let labels = vec![("peer", name.clone())];
        if let Some(value) = peer.rtt_us {
            rtt.get_or_create(&labels).set(value as f64 / 1e6);
        }
        if let Some(value) = peer.loss_percent {
            loss.get_or_create(&labels).set(f64::from(value) / 100.0);
        }
        if let Some(value) = peer.path_mtu {
            mtu.get_or_create(&labels).set(f64::from(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::CounterStatus;

    fn peer(number: u8) -> PeerStatus {
        PeerStatus {
            subnet: ipnet::Ipv4Net::new_assert([10, 5, number, 0].into(), 24),
            public_ip: [192, 0, 2, number].into(),
            vtep_mac: "02:00:00:00:00:01".into(),
            way: "tunnel".into(),
            state: "ok".into(),
            probe: Some("in-band".into()),
            rtt_us: Some(1500),
            loss_percent: Some(5),
            loss_out_percent: Some(5),
            loss_in_percent: None,
            path_mtu: Some(1450),
            seen_seconds_ago: None,
            out_packets: 1,
            out_bytes: 100,
            in_packets: 2,
            in_bytes: 200,
        }
    }

    #[test]
    fn the_page_has_what_the_status_has() {
        let counter = |name: &str, kind: &str, value| CounterStatus {
            name: name.into(),
            kind: kind.into(),
            value,
        };
        let status = Status {
            version: "1.2.3".into(),
            peers: (0..=255).chain([0]).map(peer).collect(),
            counters: vec![
                counter("tun_read", "packets", 7),
                counter("out_no_route", "drop-out", 3),
                counter("send_calls", "event", 4),
            ],
            refused_total: vec![("key".into(), 9)],
            ..Status::default()
        };
        let text = page(&status);
        for line in [
            "uvxlan_build_info{version=\"1.2.3\"} 1.0",
            "uvxlan_tun_read_packets_total 7",
            "uvxlan_drops_total{dir=\"out\",reason=\"out_no_route\"} 3",
            "uvxlan_events_total{event=\"send_calls\"} 4",
            "uvxlan_datastore_rejected_records_total{reason=\"key\"} 9",
            "uvxlan_peers{state=\"ok\"} 257.0",
            "uvxlan_peer_packets_total{peer=\"10.5.255.0/24\",dir=\"in\"} 2",
            "uvxlan_peer_packets_total{peer=\"other\",dir=\"out\"} 1",
            "uvxlan_probe_rtt_seconds{peer=\"10.5.1.0/24\"} 0.0015",
            "uvxlan_probe_one_way_loss_ratio{peer=\"10.5.1.0/24\",dir=\"out\"} 0.05",
            "uvxlan_path_mtu_bytes{peer=\"10.5.1.0/24\"} 1450.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        let classic = classic(&text);
        assert!(classic.contains("# TYPE uvxlan_drops_total counter\n"));
        assert!(classic.contains("# TYPE uvxlan_peers gauge\n"));
        assert!(!classic.contains("# EOF") && !classic.contains("# UNIT"));
    }
}
