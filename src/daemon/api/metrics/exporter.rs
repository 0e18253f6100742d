//! Renders a status as metrics. Names and units follow Prometheus' naming practices; label sets
//! are bounded.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::peer_labels::{PeerLabels, Traffic};
use super::process::Process;
use crate::control::{
    CounterKind, DatastoreStatus, Histogram, LeaseState, PeerState, PeerStatus, Phase, Status,
};

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;
type FloatCounter = Counter<f64, AtomicU64>;

struct Metrics(Registry);

impl Metrics {
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

    fn histograms(&mut self, histograms: Histograms) {
        self.0.register_collector(Box::new(histograms));
    }

    fn counter_in(&mut self, unit: Unit, name: &str, help: &str, value: u64) {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        self.0.register_with_unit(name, help, unit, counter);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        self.0.register(name, help, counter);
    }
}

/// A family of histograms with at most one label, counted elsewhere.
#[derive(Debug)]
struct Histograms {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    members: Vec<(Labels, Histogram)>,
}

impl Collector for Histograms {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let kind = MetricType::Histogram;
        let unit = self.unit.as_ref();
        let mut metric = encoder.encode_descriptor(self.name, self.help, unit, kind)?;
        for (labels, counts) in &self.members {
            let buckets: Vec<_> = counts
                .counts
                .iter()
                .map(|(largest, count)| (largest.unwrap_or(f64::INFINITY), *count))
                .collect();
            let all = buckets.iter().map(|(_, count)| count).sum();
            if labels.is_empty() {
                metric.encode_histogram::<NoLabelSet>(counts.sum, all, &buckets, None)?;
            } else {
                let mut member = metric.encode_family(labels)?;
                member.encode_histogram::<NoLabelSet>(counts.sum, all, &buckets, None)?;
            }
        }
        Ok(())
    }
}

fn single(value: f64) -> Gauge<f64, AtomicU64> {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

/// Renders the metrics of one daemon.
#[derive(Debug, Default)]
pub struct Exporter {
    labels: PeerLabels,
}

impl Exporter {
    /// Renders a status in the format of OpenMetrics.
    pub fn render(&mut self, status: &Status) -> String {
        self.labels.update(&status.peers);
        let mut metrics = Metrics(Registry::with_prefix("uvxlan"));
        let build = metrics.gauges("build_info", "Version of the program, always 1");
        let commit = option_env!("UVXLAN_COMMIT").unwrap_or("").to_owned();
        let labels = vec![("version", status.version.clone()), ("commit", commit)];
        build.get_or_create(&labels).set(1.0);
        let serving = f64::from(status.phase == Phase::Serving);
        metrics.gauge("serving", "1 when a subnet is served", serving);
        lease(&mut metrics, &status.datastore);
        datastore(&mut metrics, status);
        packets(&mut metrics, status);
        drops(&mut metrics, status);
        batches(&mut metrics, status);
        repairs(&mut metrics, status);
        peers(&mut metrics, &status.peers, &self.labels);
        probes(&mut metrics, status);
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = prometheus_client::encoding::text::encode_registry(&mut text, &metrics.0);
        let process = process(Process::read());
        let _ = prometheus_client::encoding::text::encode(&mut text, &process.0);
        text
    }
}

fn process(process: Process) -> Metrics {
    let mut metrics = Metrics(Registry::with_prefix("process"));
    if let Some(seconds) = process.cpu_seconds {
        let counter: FloatCounter = Counter::default();
        counter.inc_by(seconds);
        let help = "Total user and system CPU time";
        metrics
            .0
            .register_with_unit("cpu", help, Unit::Seconds, counter);
    }
    let gauges = [
        (
            "start_time",
            "Start of the process since unix epoch",
            Some(Unit::Seconds),
            process.start,
        ),
        (
            "resident_memory",
            "Resident memory size",
            Some(Unit::Bytes),
            process.resident_bytes.map(|bytes| bytes as f64),
        ),
        (
            "virtual_memory",
            "Virtual memory size",
            Some(Unit::Bytes),
            process.virtual_bytes.map(|bytes| bytes as f64),
        ),
        (
            "open_fds",
            "Number of open file descriptors",
            None,
            process.open_fds.map(|count| count as f64),
        ),
        (
            "max_fds",
            "Maximum number of open file descriptors",
            None,
            process.max_fds.map(|count| count as f64),
        ),
    ];
    for (name, help, unit, value) in gauges {
        match (unit, value) {
            (Some(unit), Some(value)) => metrics.gauge_in(unit, name, help, value),
            (None, Some(value)) => metrics.gauge(name, help, value),
            (_, None) => {}
        }
    }
    metrics
}

fn lease(metrics: &mut Metrics, datastore: &DatastoreStatus) {
    let held = f64::from(datastore.lease == LeaseState::Held);
    let help = "1 when the datastore confirms our lease";
    metrics.gauge("lease_held", help, held);
    if let Some(left) = datastore.lease_ends_in_seconds {
        let help =
            "When our lease expires unless it is renewed, as Unix time; absent for a reservation";
        let name = "lease_expiry_timestamp";
        metrics.gauge_in(Unit::Seconds, name, help, (unix_time() + left) as f64);
    }
    let renewals = metrics.counters("lease_renewals", "Renewals of our lease, by result");
    for (result, count) in [
        ("ok", datastore.renewals),
        ("failed", datastore.renewals_failed),
    ] {
        let labels = vec![("result", result.to_owned())];
        renewals.get_or_create(&labels).inc_by(count);
    }
}

fn datastore(metrics: &mut Metrics, status: &Status) {
    let datastore = &status.datastore;
    // Without a lease there is nothing to confirm.
    let connected = !matches!(
        datastore.lease,
        LeaseState::Unconfirmed | LeaseState::Pending
    );
    let help = "1 when the datastore answered the last request about our lease";
    metrics.gauge("datastore_connected", help, f64::from(connected));
    if let Some(ago) = datastore.heard_seconds_ago {
        let help = "Time since the datastore's last answer";
        metrics.gauge_in(Unit::Seconds, "datastore_silence", help, ago as f64);
        let help = "When the datastore last answered, as Unix time";
        let name = "datastore_last_sync_timestamp";
        let at = unix_time().saturating_sub(ago);
        metrics.gauge_in(Unit::Seconds, name, help, at as f64);
    }
    let help = "Complete lists of leases that were compared with the known peers, by reason";
    let resyncs = metrics.counters("datastore_resyncs", help);
    for (reason, count) in &datastore.resyncs {
        let labels = vec![("reason", reason.clone())];
        resyncs.get_or_create(&labels).inc_by(*count);
    }
    let help = "Records that were refused, by reason";
    let rejected = metrics.counters("datastore_rejected_records", help);
    for (reason, count) in &status.refused_total {
        let labels = vec![("reason", reason.clone())];
        rejected.get_or_create(&labels).inc_by(*count);
    }
}

fn unix_time() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// Packet counters with a metric of their own: name, counter, help.
const PACKETS: [(&str, &str, &str); 5] = [
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
        "Probes received from the tunnel",
    ),
];

/// Byte counters, likewise.
const BYTES: [(&str, &str, &str); 2] = [
    ("encap", "sent_bytes", "Inner bytes sent through the tunnel"),
    ("decap", "delivered_bytes", "Bytes written to the device"),
];

fn packets(metrics: &mut Metrics, status: &Status) {
    let value = |name: &str| {
        let counter = status.counters.iter().find(|counter| counter.name == name);
        counter.map_or(0, |counter| counter.value)
    };
    for (name, source, help) in PACKETS {
        metrics.counter(name, help, value(source));
    }
    for (name, source, help) in BYTES {
        metrics.counter_in(Unit::Bytes, name, help, value(source));
    }
    let help = "Super-packets that the kernel refused and that were moved in parts, by call";
    let fallbacks = metrics.counters("gso_fallbacks", help);
    for (reason, source) in [("send", "segment_fallbacks"), ("write", "merge_fallbacks")] {
        let labels = vec![("reason", reason.to_owned())];
        fallbacks.get_or_create(&labels).inc_by(value(source));
    }
}

fn drops(metrics: &mut Metrics, status: &Status) {
    let help = "Dropped packets; tun_read = encap + drops{dir=\"out\"}, udp_read = decap + probe + drops{dir=\"in\"}";
    let drops = metrics.counters("drops", help);
    let events = metrics.counters("events", "Other counters of the packet loop, by name");
    for counter in &status.counters {
        let name = counter.name.clone();
        let (family, labels) = match counter.kind {
            CounterKind::DropOut => (&drops, vec![("dir", "out".into()), ("reason", name)]),
            CounterKind::DropIn => (&drops, vec![("dir", "in".into()), ("reason", name)]),
            CounterKind::Event => (&events, vec![("event", name)]),
            _ => continue,
        };
        family.get_or_create(&labels).inc_by(counter.value);
    }
}

fn batches(metrics: &mut Metrics, status: &Status) {
    let batches = status
        .packet_loop
        .iter()
        .flat_map(|packets| &packets.batches);
    metrics.histograms(Histograms {
        name: "batch_size",
        help: "Packets moved by one system call, by call",
        unit: None,
        members: batches
            .map(|batch| (vec![("call", batch.call.clone())], batch.sizes.clone()))
            .collect(),
    });
}

fn repairs(metrics: &mut Metrics, status: &Status) {
    let changes = metrics.counters(
        "reconcile_changes",
        "Restored changes that others had made to the host",
    );
    for (kind, count) in &status.repairs {
        let labels = vec![("kind", kind.clone())];
        changes.get_or_create(&labels).inc_by(*count);
    }
}

fn peers(metrics: &mut Metrics, peers: &[PeerStatus], labels: &PeerLabels) {
    let states = metrics.gauges("peers", "Peers by state");
    for state in PeerState::ALL {
        let count = peers.iter().filter(|peer| peer.state == state).count();
        let labels = vec![("state", state.to_string())];
        states.get_or_create(&labels).set(count as f64);
    }
    let packets = metrics.counters("peer_packets", "Inner packets by peer");
    let bytes = metrics.counters("peer_bytes", "Inner bytes by peer");
    let count = |name: &str, traffic: Traffic| {
        let labels = |dir: &str| vec![("peer", name.to_owned()), ("dir", dir.to_owned())];
        let (out, inward) = (labels("out"), labels("in"));
        packets.get_or_create(&out).inc_by(traffic.out_packets);
        packets.get_or_create(&inward).inc_by(traffic.in_packets);
        bytes.get_or_create(&out).inc_by(traffic.out_bytes);
        bytes.get_or_create(&inward).inc_by(traffic.in_bytes);
    };
    let rtt = metrics.gauges_in(Unit::Seconds, "peer_rtt", "Last round trip of a probe");
    let loss = metrics.gauges(
        "probe_loss_ratio",
        "Share of the latest probes without a reply",
    );
    let one_way = metrics.gauges(
        "probe_one_way_loss_ratio",
        "Lost among the latest probes by direction, for peers that report it",
    );
    let mtu = metrics.gauges_in(
        Unit::Bytes,
        "path_mtu",
        "Longest packet that a probe carried to the peer and back",
    );
    for peer in peers.iter().filter(|peer| labels.has_label(peer.subnet)) {
        let name = peer.subnet.to_string();
        count(&name, Traffic::of(peer));
        for (dir, value) in [("out", peer.loss_out_percent), ("in", peer.loss_in_percent)] {
            if let Some(value) = value {
                let labels = vec![("peer", name.clone()), ("dir", dir.to_owned())];
                one_way.get_or_create(&labels).set(f64::from(value) / 100.0);
            }
        }
        let labels = vec![("peer", name)];
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
    if let Some(others) = labels.others() {
        count("other", others);
    }
}

fn probes(metrics: &mut Metrics, status: &Status) {
    if let Some(trips) = &status.round_trips {
        metrics.histograms(Histograms {
            name: "probe_rtt",
            help: "Round trips of all answered probes",
            unit: Some(Unit::Seconds),
            members: vec![(Vec::new(), trips.clone())],
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::peer_labels::tests::peer;
    use super::*;
    use crate::control::{BatchStatus, CounterStatus, PacketLoopStatus};

    #[test]
    fn a_status_is_rendered_whole() {
        let counter = |name: &str, kind, value| CounterStatus {
            name: name.into(),
            kind,
            value,
        };
        let status = Status {
            version: "1.2.3".into(),
            peers: (0..257).map(|number| peer(number, 1)).collect(),
            counters: vec![
                counter("tun_read", CounterKind::Packets, 7),
                counter("out_no_route", CounterKind::DropOut, 3),
                counter("send_calls", CounterKind::Event, 4),
                counter("merge_fallbacks", CounterKind::Event, 2),
                counter("delivered_bytes", CounterKind::Bytes, 4000),
            ],
            packet_loop: Some(PacketLoopStatus {
                batches: vec![BatchStatus {
                    call: "send".into(),
                    sizes: Histogram {
                        sum: 7.0,
                        counts: vec![(Some(1.0), 3), (Some(2.0), 0), (None, 1)],
                    },
                }],
                ..PacketLoopStatus::default()
            }),
            round_trips: Some(Histogram {
                sum: 0.5,
                counts: vec![(Some(0.001), 2), (None, 0)],
            }),
            repairs: vec![("routes".into(), 2)],
            refused_total: vec![("key".into(), 9)],
            ..Status::default()
        };
        let text = Exporter::default().render(&status);
        for line in [
            "uvxlan_build_info{version=\"1.2.3\",commit=\"\"} 1.0",
            "uvxlan_tun_read_packets_total 7",
            "uvxlan_drops_total{dir=\"out\",reason=\"out_no_route\"} 3",
            "uvxlan_events_total{event=\"send_calls\"} 4",
            "uvxlan_datastore_rejected_records_total{reason=\"key\"} 9",
            "uvxlan_peers{state=\"ok\"} 257.0",
            "uvxlan_peer_packets_total{peer=\"10.0.255.0/24\",dir=\"in\"} 2",
            "uvxlan_peer_packets_total{peer=\"other\",dir=\"out\"} 1",
            "uvxlan_peer_rtt_seconds{peer=\"10.0.1.0/24\"} 0.0015",
            "uvxlan_decap_bytes_total 4000",
            "uvxlan_gso_fallbacks_total{reason=\"write\"} 2",
            "uvxlan_reconcile_changes_total{kind=\"routes\"} 2",
            "uvxlan_batch_size_bucket{le=\"2.0\",call=\"send\"} 3",
            "uvxlan_batch_size_bucket{le=\"+Inf\",call=\"send\"} 4",
            "uvxlan_batch_size_sum{call=\"send\"} 7.0",
            "uvxlan_probe_rtt_seconds_bucket{le=\"0.001\"} 2",
            "uvxlan_probe_rtt_seconds_count 2",
            "uvxlan_probe_one_way_loss_ratio{peer=\"10.0.1.0/24\",dir=\"out\"} 0.05",
            "uvxlan_path_mtu_bytes{peer=\"10.0.1.0/24\"} 1450.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.contains("\nprocess_resident_memory_bytes "));
        assert!(text.contains("\nprocess_cpu_seconds_total "));
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
    }
}
