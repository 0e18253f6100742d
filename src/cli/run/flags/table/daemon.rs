//! Flags about the process: health, metrics, packet threads.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::VERSION;
use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::DEFAULT_METRICS;
use crate::daemon::options::parse::{Invalid, boolean, count, offloads, optional};

pub(crate) const FLAGS: &[Flag] = &[
    Flag::new(
        Group::Daemon,
        "healthz-ip",
        "Address of the health endpoint",
        |to, text| {
            to.healthz_ip = text.trim_ascii().to_owned();
            Ok(())
        },
    )
    .value("ADDRESS")
    .default("0.0.0.0"),
    Flag::new(
        Group::Daemon,
        "healthz-port",
        "TCP port of the health endpoint, 0 is off",
        |to, text| {
            let range = || Invalid::Value("a port number".to_owned());
            to.healthz_port = u16::try_from(count(text, 0, 65_535)?).map_err(|_| range())?;
            Ok(())
        },
    )
    .value("PORT")
    .default("0")
    .details("GET /healthz says that the daemon runs, /readyz whether it serves a subnet."),
    Flag::new(
        Group::Daemon,
        "metrics-listen",
        "Address of the page for Prometheus; empty is off",
        |to, text| {
            let text = optional(text).unwrap_or_default();
            let off = text.is_empty() || text == "off";
            if !off && text.parse::<std::net::SocketAddr>().is_err() {
                return Err(Invalid::Value("ADDRESS:PORT, or off".to_owned()));
            }
            to.metrics_listen = if off { String::new() } else { text.to_owned() };
            Ok(())
        },
    )
    .value("ADDRESS:PORT")
    .default(DEFAULT_METRICS)
    .ours()
    .details("GET /metrics. Where the port is taken the daemon goes on without, and says so."),
    Flag::new(
        Group::Daemon,
        "probe-interval",
        "Seconds between two probes of each peer, 0 is off",
        |to, text| {
            to.probe_interval = Duration::from_secs(count(text, 0, 86_400)?.into());
            Ok(())
        },
    )
    .value("SECONDS")
    .default("5")
    .ours()
    .details("Round trip, loss by direction and path MTU for uvxlan status. Nodes of this program ask each other inside of the tunnel, and their leases say that they answer; others are asked by ICMP echo, from our subnet's network address to theirs. A peer is asked at most once a second, all together 500 times. With 0 nobody is asked, or answered."),
    Flag::new(
        Group::Daemon,
        "workers",
        "Packet threads; without it, by the number of CPUs",
        |to, text| {
            to.workers = usize::try_from(count(text, 1, 256)?)
                .ok()
                .and_then(NonZeroUsize::new);
            Ok(())
        },
    )
    .value("N")
    .ours(),
    Flag::new(
        Group::Daemon,
        "offload",
        "What to hand to the kernel in large pieces: auto, off, or a list of parts",
        |to, text| {
            to.tuning.offloads = offloads(text)?;
            Ok(())
        },
    )
    .value("PARTS")
    .default("auto")
    .ours()
    .details(
        "Parts: read (TSO and USO of the device), send (UDP_SEGMENT), receive (UDP_GRO), write \
         (merged packets into the device). -PART takes one away, as in auto,-send. What the \
         kernel lacks or does wrong is left out by itself, and the log says so.",
    ),
    Flag::new(
        Group::Daemon,
        "spin",
        "How long a worker looks for the next packet before it sleeps; 0 is not at all",
        |to, text| {
            to.tuning.spin = Duration::from_micros(count(text, 0, 10_000)?.into());
            Ok(())
        },
    )
    .value("MICROSECONDS")
    .default("100")
    .ours()
    .details(
        "It does so only while packets follow each other that closely, and nobody else wants \
         the processor: a shorter round trip for some processor time.",
    ),
    Flag::new(
        Group::Daemon,
        "keep-device",
        "Leave flannel.N and its routes when stopping",
        |to, text| {
            to.keep_device = boolean(text)?;
            Ok(())
        },
    )
    .ours()
    .details("uvxlan down removes what was left."),
    Flag::new(Group::Daemon, VERSION, "Print the version", |_, text| {
        boolean(text).map(drop)
    }),
];
