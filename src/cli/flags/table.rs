//! The table: names, defaults, texts, and what each flag sets.
//!
//! flannel's part is the union of flannel v0.11.0 and the newest (their `main.go`), so that
//! no command line of theirs is refused.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::{Flag, Group};
use crate::daemon::options::{
    DEFAULT_CONTROL_SOCKET, DEFAULT_ENDPOINTS, DEFAULT_METRICS, DEFAULT_PREFIX, DEFAULT_STATE_DIR,
    DEFAULT_SUBNET_FILE, FirewallChoice, Invalid, LogFormat, ReceiveOn, RunOptions, Secret,
    address, boolean, choice, count, endpoints, expression, integer, network, offloads, optional,
    required, store,
};
use crate::dataplane::guard::Mode;
use crate::subnet::store::etcd_auto::EtcdApi;

const FILE: &str = "the path of a file";

/// All flags, in the order of the help.
pub(in crate::cli) static FLAGS: &[Flag] = &[
    Flag::new(
        Group::Datastore,
        "etcd-endpoints",
        "etcd servers, separated by commas",
        |to, text| {
            to.etcd_endpoints = endpoints(text)?;
            Ok(())
        },
    )
    .value("URLS")
    .default(DEFAULT_ENDPOINTS),
    Flag::new(
        Group::Datastore,
        "etcd-prefix",
        "Key prefix of the network",
        |to, text| {
            to.etcd_prefix = required(text, "a key prefix such as /coreos.com/network")?;
            Ok(())
        },
    )
    .value("KEY")
    .default(DEFAULT_PREFIX)
    .details("The network config is read from KEY/config, leases lie below KEY/subnets/."),
    Flag::new(
        Group::Datastore,
        "etcd-api",
        "API of etcd: auto, v3, v2",
        |to, text| {
            let words = [
                ("auto", EtcdApi::Auto),
                ("v3", EtcdApi::V3),
                ("v2", EtcdApi::V2),
            ];
            to.etcd_api = choice(text, &words)?;
            Ok(())
        },
    )
    .value("API")
    .default("auto")
    .ours()
    .details(
        "v3 and v2 are two stores in one server: flannel since v0.18 uses v3, up to v0.17 it used \
         v2. auto takes the one that holds the network config, and v3 where both do.",
    ),
    Flag::new(
        Group::Datastore,
        "etcd-cafile",
        "CA certificates (PEM) to check etcd with",
        |to, text| {
            to.etcd_ca_file = optional(text).map(Into::into);
            Ok(())
        },
    )
    .value("FILE")
    .alias(&["etcd-ca-file"]),
    Flag::new(
        Group::Datastore,
        "etcd-certfile",
        "Client certificate (PEM) shown to etcd",
        |to, text| {
            to.etcd_cert_file = optional(text).map(Into::into);
            Ok(())
        },
    )
    .value("FILE")
    .alias(&["etcd-cert-file"]),
    Flag::new(
        Group::Datastore,
        "etcd-keyfile",
        "Key (PEM) of the client certificate",
        |to, text| {
            to.etcd_key_file = optional(text).map(Into::into);
            Ok(())
        },
    )
    .value("FILE")
    .alias(&["etcd-key-file"]),
    Flag::new(
        Group::Datastore,
        "etcd-username",
        "User name for etcd",
        |to, text| {
            to.etcd_username = optional(text).map(Into::into);
            Ok(())
        },
    )
    .value("NAME"),
    Flag {
        secret: true,
        ..Flag::new(
            Group::Datastore,
            "etcd-password",
            "Password for etcd",
            |to, text| {
                to.etcd_password = (!text.is_empty()).then(|| Secret::new(text));
                Ok(())
            },
        )
        .value("PASSWORD")
        .details("Better given by the environment: a command line can be read by every user.")
    },
    Flag::new(
        Group::Datastore,
        "insecure-etcd",
        "Send the password over a network without TLS",
        |to, text| {
            to.insecure_etcd = boolean(text)?;
            Ok(())
        },
    )
    .ours()
    .details("Without it a password for an http:// endpoint other than this host itself is refused."),
    Flag::new(
        Group::Datastore,
        "store",
        "Where leases lie: etcd, or dir:PATH",
        |to, text| {
            to.store = store(text)?;
            Ok(())
        },
    )
    .value("STORE")
    .default("etcd")
    .ours()
    .details("dir:PATH is a directory that all nodes share; it needs no etcd."),
    Flag::new(
        Group::Datastore,
        "fail-fast",
        "End with status 69 when the datastore does not answer at start",
        |to, text| {
            to.fail_fast = boolean(text)?;
            Ok(())
        },
    )
    .ours()
    .details("Without it the daemon keeps trying."),
    Flag::new(
        Group::Subnet,
        "iface",
        "Interface for traffic between hosts: name or address",
        |to, text| {
            to.iface.extend(optional(text).map(str::to_owned));
            Ok(())
        },
    )
    .repeated("IFACE")
    .details(
        "May be given several times: the first that is found is used. Without any, the \
         interface of the default route.",
    ),
    Flag::new(
        Group::Subnet,
        "iface-regex",
        "Regular expression for the interface, tried after names",
        |to, text| {
            if !text.is_empty() {
                to.iface_regex.push(expression(text)?);
            }
            Ok(())
        },
    )
    .repeated("REGEX")
    .details("May be given several times. Each is matched with addresses first, then names."),
    Flag::new(
        Group::Subnet,
        "iface-can-reach",
        "Use the interface that the route to ADDRESS takes",
        |to, text| {
            to.iface_can_reach = address(text, "an IP address such as 10.0.0.1")?;
            Ok(())
        },
    )
    .value("ADDRESS")
    .newest(),
    Flag::new(
        Group::Subnet,
        "public-ip",
        "IPv4 address that other hosts reach this one by",
        |to, text| {
            to.public_ip = address(text, "an IPv4 address such as 10.0.0.1")?;
            Ok(())
        },
    )
    .value("ADDRESS"),
    Flag::new(
        Group::Subnet,
        "public-ipv6",
        "IPv6 address that other hosts reach this one by",
        |to, text| {
            to.public_ipv6 = optional(text).map(Into::into);
            Ok(())
        },
    )
    .value("ADDRESS")
    .newest()
    .not_yet(),
    Flag::new(
        Group::Subnet,
        "subnet-lease-renew-margin",
        "Minutes before its expiry that a lease is renewed, 1 to 1439",
        |to, text| {
            to.renew_margin = Duration::from_secs(u64::from(count(text, 1, 1439)?) * 60);
            Ok(())
        },
    )
    .value("MINUTES")
    .default("60"),
    Flag {
        hidden: true,
        ..Flag::new(
            Group::Subnet,
            "lease-ttl",
            "Time to live of a lease, for tests",
            |to, text| {
                to.lease_ttl = Duration::from_secs(count(text, 1, 365 * 86_400)?.into());
                Ok(())
            },
        )
        .value("SECONDS")
        .default("86400")
        .ours()
    },
    Flag::new(
        Group::Subnet,
        "mass-delete-hold",
        "Seconds that peers are kept when most of them vanish from the store at once, 0 to 3600",
        |to, text| {
            to.mass_delete_hold = Duration::from_secs(count(text, 0, 3600)?.into());
            Ok(())
        },
    )
    .value("SECONDS")
    .default("30")
    .ours()
    .details("Then the store is read again, and what is still missing goes. 0 is off."),
    Flag::new(
        Group::Subnet,
        "mixed-lengths",
        "Believe leases whose subnets are not of the network's SubnetLen",
        |to, text| {
            to.mixed_lengths = boolean(text)?;
            Ok(())
        },
    )
    .ours()
    .details("For a network whose SubnetLen was changed while leases of the old length live."),
    Flag::new(
        Group::Subnet,
        "allow-renumber",
        "Take another subnet when ours belongs to another host now",
        |to, text| {
            to.allow_renumber = boolean(text)?;
            Ok(())
        },
    )
    .ours()
    .details("Without it the daemon ends: containers with addresses of the old subnet may run."),
    Flag::new(
        Group::Subnet,
        "backend-default",
        "Backend to assume when the network config names none, or udp: vxlan",
        |to, text| {
            to.backend_default = match optional(text) {
                None => None,
                Some(text) => Some(choice(text, &[("vxlan", "vxlan")])?.to_owned()),
            };
            Ok(())
        },
    )
    .value("TYPE")
    .ours()
    .details("Without it such a config is refused: flannel takes it as its udp backend."),
    Flag::new(
        Group::Subnet,
        "receive-on",
        "Receive on any address, or on the public one only: any, public",
        |to, text| {
            let words = [("any", ReceiveOn::Any), ("public", ReceiveOn::Public)];
            to.receive_on = choice(text, &words)?;
            Ok(())
        },
    )
    .value("ADDRESS")
    .default("any")
    .ours(),
    Flag::new(
        Group::Subnet,
        "peer-check",
        "What to do with packets that do not belong: enforce, log, off",
        |to, text| {
            let words = [
                ("enforce", Mode::Enforce),
                ("log", Mode::Log),
                ("off", Mode::Off),
            ];
            to.peer_check = choice(text, &words)?;
            Ok(())
        },
    )
    .value("MODE")
    .default("enforce")
    .ours()
    .details(
        "A packet belongs when its sender has a lease, its inner source is in that lease's subnet \
         (or outside of the network, see --strict-sources), and its inner destination is in the \
         own subnet. log counts and lets pass, for peers that send from other addresses than \
         they publish.",
    ),
    Flag::new(
        Group::Subnet,
        "socket-filter",
        "Whether the kernel drops strangers' packets already: auto, off",
        |to, text| {
            to.socket_filter = choice(text, &[("auto", true), ("off", false)])?;
            Ok(())
        },
    )
    .value("MODE")
    .default("auto")
    .ours()
    .details(
        "Of --peer-check=enforce, as long as there are some hundreds of peers at most. What is \
         dropped so is counted as socket_drops, not by its reason.",
    ),
    Flag::new(
        Group::Subnet,
        "allow-peer",
        "Take packets from this address or network without a lease",
        |to, text| {
            to.allow_peer.push(network(text)?);
            Ok(())
        },
    )
    .repeated("CIDR")
    .ours(),
    Flag::new(
        Group::Subnet,
        "forward-extra",
        "Let peers send to this network beside the own subnet",
        |to, text| {
            to.forward_extra.push(network(text)?);
            Ok(())
        },
    )
    .repeated("CIDR")
    .ours(),
    Flag::new(
        Group::Subnet,
        "strict-sources",
        "Refuse inner sources outside of the network, too",
        |to, text| {
            to.strict_sources = boolean(text)?;
            Ok(())
        },
    )
    .ours(),
    Flag::new(
        Group::Files,
        "subnet-file",
        "File to write subnet, MTU and masquerading to",
        |to, text| {
            to.subnet_file = required(text, FILE)?.into();
            Ok(())
        },
    )
    .value("FILE")
    .default(DEFAULT_SUBNET_FILE),
    Flag::new(
        Group::Files,
        "state-dir",
        "Directory of what must survive a restart",
        |to, text| {
            to.state_dir = required(text, "the path of a directory")?.into();
            Ok(())
        },
    )
    .value("DIR")
    .default(DEFAULT_STATE_DIR)
    .ours(),
    Flag::new(
        Group::Files,
        "control-socket",
        "Socket for asking the running daemon",
        |to, text| {
            to.control_socket = required(text, "the path of a socket")?.into();
            Ok(())
        },
    )
    .value("PATH")
    .default(DEFAULT_CONTROL_SOCKET)
    .ours()
    .details("Asked by uvxlan status, trace, ping and top. Owner and group may; nothing can be changed through it."),
    Flag::new(
        Group::Rules,
        "ip-masq",
        "Masquerade what containers send to addresses outside of the network",
        |to, text| {
            to.ip_masq = boolean(text)?;
            Ok(())
        },
    ),
    Flag::new(
        Group::Rules,
        "ip-masq-fully-random-disable",
        "Masquerade without random ports",
        |to, text| {
            to.ip_masq_fully_random_disable = boolean(text)?;
            Ok(())
        },
    )
    .newest(),
    Flag::new(
        Group::Rules,
        "firewall",
        "Who holds the rules: auto, iptables, nftables, none, print",
        |to, text| {
            let words = [
                ("auto", FirewallChoice::Auto),
                ("iptables", FirewallChoice::Iptables),
                ("nftables", FirewallChoice::Nftables),
                ("none", FirewallChoice::None),
                ("print", FirewallChoice::Print),
            ];
            to.firewall = choice(text, &words)?;
            Ok(())
        },
    )
    .value("TOOL")
    .default("auto")
    .ours()
    .details(
        "auto takes nftables where the network config says EnableNFTables, else iptables, and the \
         other where that is not installed. print writes the rules to stdout and installs none.",
    ),
    Flag::new(
        Group::Rules,
        "iptables-resync",
        "Seconds between two checks of the rules; 0 is never",
        |to, text| {
            to.iptables_resync = Duration::from_secs(count(text, 0, u32::MAX)?.into());
            Ok(())
        },
    )
    .value("SECONDS")
    .default("5"),
    Flag::new(
        Group::Rules,
        "iptables-forward-rules",
        "Accept forwarded traffic of the network",
        |to, text| {
            to.iptables_forward_rules = boolean(text)?;
            Ok(())
        },
    )
    .default("true"),
    Flag::new(
        Group::Rules,
        "ip-blackhole-route",
        "Discard packets to the own subnet that no other route takes",
        |to, text| {
            to.ip_blackhole_route = boolean(text)?;
            Ok(())
        },
    )
    .newest(),
    Flag::new(
        Group::Kubernetes,
        "kube-subnet-mgr",
        "Leases from Kubernetes: refused, not supported yet",
        |_, text| {
            if boolean(text)? {
                Err(Invalid::KubeSubnetManager)
            } else {
                Ok(())
            }
        },
    ),
    Flag::new(
        Group::Kubernetes,
        "kube-api-url",
        "URL of the Kubernetes API server",
        ignored,
    )
    .value("URL")
    .not_yet(),
    Flag::new(
        Group::Kubernetes,
        "kube-annotation-prefix",
        "Prefix of node annotations",
        ignored,
    )
    .value("PREFIX")
    .default("flannel.alpha.coreos.com")
    .not_yet(),
    Flag::new(
        Group::Kubernetes,
        "kubeconfig-file",
        "kubeconfig file",
        ignored,
    )
    .value("FILE")
    .not_yet(),
    Flag::new(
        Group::Kubernetes,
        "net-config-path",
        "Network config file of Kubernetes mode",
        ignored,
    )
    .value("FILE")
    .default("/etc/kube-flannel/net-conf.json")
    .newest()
    .not_yet(),
    Flag::new(
        Group::Kubernetes,
        "set-node-network-unavailable",
        "Clear the node's NetworkUnavailable condition",
        |_, text| boolean(text).map(drop),
    )
    .default("true")
    .newest()
    .not_yet(),
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
    .details("An ICMP echo from our subnet's network address to the peer's, for round trip, loss and path MTU in uvxlan status."),
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
            to.offloads = offloads(text)?;
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
            to.spin = Duration::from_micros(count(text, 0, 10_000)?.into());
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
    Flag::new(
        Group::Logging,
        "v",
        "Verbosity: 0 info, 1 to 3 debug, 4 and more trace",
        |to, text| {
            let number = integer(text, i32::MIN.into(), i32::MAX.into())?;
            to.verbosity = i32::try_from(number).unwrap_or(0);
            Ok(())
        },
    )
    .value("N")
    .default("0"),
    Flag::new(
        Group::Logging,
        "vmodule",
        "Verbosity by source file",
        ignored,
    )
    .value("PATTERNS")
    .not_yet(),
    Flag::new(
        Group::Logging,
        "log_backtrace_at",
        "Stack trace at a line of the source",
        ignored,
    )
    .value("FILE:LINE")
    .not_yet(),
    Flag::new(
        Group::Logging,
        "log-format",
        "Shape of log lines: text, json",
        |to, text| {
            to.log_format = choice(
                text,
                &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            )?;
            Ok(())
        },
    )
    .value("FORMAT")
    .default("text")
    .ours(),
];

/// The flag that ends the program with the version; only on the command line, as flannel's.
pub(in crate::cli) const VERSION: &str = "version";

fn ignored(_: &mut RunOptions, _: &str) -> Result<(), Invalid> {
    Ok(())
}
