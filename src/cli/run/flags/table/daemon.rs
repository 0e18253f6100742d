//! Flags about the process: health, metrics, probes, packet threads.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::{VERSION, put};
use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::DEFAULT_METRICS;
use crate::daemon::options::parse::{Invalid, boolean, count, offloads, optional};

pub(crate) const FLAGS: &[Flag] = &[
    Flag::new(
        Group::Daemon,
        "healthz-ip",
        "Address of the health endpoint",
        |to, text| put(&mut to.healthz_ip, Ok(text.trim_ascii().to_owned())),
    )
    .value("ADDRESS")
    .default("0.0.0.0"),
    Flag::new(
        Group::Daemon,
        "healthz-port",
        "TCP port of the health endpoint; 0 is off",
        |to, text| {
            let range = || Invalid::Value("a port number".to_owned());
            to.healthz_port = u16::try_from(count(text, 0, 65_535)?).map_err(|_| range())?;
            Ok(())
        },
    )
    .value("PORT")
    .default("0")
    .details(
        "GET /healthz answers while the daemon runs; /readyz while it serves a subnet, the device \
         exists and the requested firewall rules are installed.",
    ),
    Flag::new(
        Group::Daemon,
        "metrics-listen",
        "Address of the Prometheus endpoint; empty or off turns it off",
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
    .details("GET /metrics. If the port is taken, the daemon logs that and runs without it."),
    Flag::new(
        Group::Daemon,
        "probe-interval",
        "Seconds between two probes of each peer; 0 is off",
        |to, text| {
            to.probe_interval = Duration::from_secs(count(text, 0, 86_400)?.into());
            Ok(())
        },
    )
    .value("SECONDS")
    .default("5")
    .ours()
    .details(
        "Probes measure round trip, loss in each direction and path MTU. Nodes that run uvxlan \
         announce in their lease that they answer probes inside of the tunnel; other nodes get \
         ICMP echo requests, sent from our subnet's network address to theirs. A peer gets at \
         most one probe a second, all peers together 500. With 0 the node neither sends probes \
         nor answers them.",
    ),
    Flag::new(
        Group::Daemon,
        "workers",
        "Packet threads; default: one for each CPU, at most 4",
        |to, text| {
            let workers = count(text, 1, 256)?;
            to.workers = usize::try_from(workers).ok().and_then(NonZeroUsize::new);
            Ok(())
        },
    )
    .value("N")
    .ours(),
    Flag::new(
        Group::Daemon,
        "offload",
        "Kernel offloads to use: auto, off, or a list of parts",
        |to, text| put(&mut to.tuning.offloads, offloads(text)),
    )
    .value("PARTS")
    .default("auto")
    .ours()
    .details(
        "Parts: read (TSO and USO of the device), send (UDP_SEGMENT), receive (UDP_GRO), write \
         (merged packets into the device). -PART removes one: auto,-send. Parts that the kernel \
         does not have or gets wrong are left out without being asked for, and the log names them.",
    ),
    Flag::new(
        Group::Daemon,
        "spin",
        "How long a packet thread polls for the next packet before it sleeps; 0 is not at all",
        |to, text| {
            to.tuning.spin = Duration::from_micros(count(text, 0, 10_000)?.into());
            Ok(())
        },
    )
    .value("MICROSECONDS")
    .default("100")
    .ours()
    .details(
        "It polls only while packets follow each other that closely and nothing else needs the \
         CPU. This shortens the round trip and costs some CPU time.",
    ),
    Flag::new(
        Group::Daemon,
        "keep-device",
        "Leave flannel.N and its routes in place when stopping",
        |to, text| put(&mut to.keep_device, boolean(text)),
    )
    .ours()
    .details("uvxlan down removes them."),
    Flag::new(Group::Daemon, VERSION, "Print the version", |_, text| {
        boolean(text).map(drop)
    }),
];
