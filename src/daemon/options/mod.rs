//! The settings of `uvxlan run`, typed. `parse` turns the text of a flag into a value.

pub(crate) mod parse;

use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::dataplane::Tuning;
use crate::dataplane::ingress_policy::Enforcement;
use crate::subnet::store::StoreConfig;

/// flannel's default of `--subnet-file`.
pub const DEFAULT_SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// Default of `--state-dir`.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/uvxlan";
/// Default of `--control-socket`.
pub const DEFAULT_CONTROL_SOCKET: &str = "/run/uvxlan/control.sock";

/// Default of `--metrics-listen`.
pub const DEFAULT_METRICS: &str = "127.0.0.1:9472";

/// Format of log lines (`--log-format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text for each event.
    Text,
    /// One JSON object for each event.
    Json,
}

/// Where datagrams are received (`--receive-on`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveOn {
    /// On any address and interface, as a kernel VTEP does.
    Any,
    /// On the chosen (published) address only.
    Public,
    /// On the chosen address and interface only.
    Interface,
}

/// Which program installs masquerade and forward rules (`--firewall`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirewallChoice {
    /// nftables if the network config says `EnableNFTables`, else iptables; the other one if
    /// that is not installed.
    Auto,
    /// iptables.
    Iptables,
    /// nftables.
    Nftables,
    /// No rules.
    None,
    /// No rules; they are printed for an administrator to install.
    Print,
}

/// Where a value comes from. The command line has precedence over the environment, and that
/// over the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// An environment variable: `FLANNELD_*`, or `UVXLAN_*` for what flannel does not have.
    Environment,
    /// The command line.
    CommandLine,
}

/// One setting as text, for the log at start. Secrets are masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Flag name, without dashes.
    pub name: &'static str,
    /// Value as given; several values joined by commas.
    pub value: String,
    /// Where the value comes from.
    pub origin: Origin,
}

impl fmt::Display for Setting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = match self.origin {
            Origin::Default => "default",
            Origin::Environment => "environment",
            Origin::CommandLine => "command line",
        };
        write!(formatter, "{}={} ({origin})", self.name, self.value)
    }
}

/// Severity of a [`Notice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoticeLevel {
    /// For information.
    Info,
    /// A request has no effect, or another one than with flannel.
    Warn,
    /// A value is unusable; the daemon starts without it.
    Error,
}

/// A message about the arguments, logged once logging is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Severity.
    pub level: NoticeLevel,
    /// One line, without secrets.
    pub text: String,
}

/// All settings of `uvxlan run`.
///
/// Flags without effect whose values the daemon does not use (`kube-*`, `vmodule`, …) have no
/// field; they appear in [`settings`](Self::settings).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOptions {
    /// Where leases are stored.
    pub store: StoreConfig,
    /// Exit with status 69 if the store does not answer at start, instead of retrying.
    pub fail_fast: bool,
    /// Interface names or addresses, tried in order.
    pub iface: Vec<String>,
    /// Regular expressions for interface addresses, then names; tried after `iface`.
    pub iface_regex: Vec<String>,
    /// Use the interface and source address of the kernel's route to this address; tried last.
    pub iface_can_reach: Option<Ipv4Addr>,
    /// Address to publish instead of the interface's.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6` as given; it has no effect yet.
    pub public_ipv6: Option<String>,
    /// How long before its expiry a lease is renewed: 1 to 1439 minutes.
    pub renew_margin: Duration,
    /// Time to live of a lease: 24 h as with flannel, shorter only in tests.
    pub lease_ttl: Duration,
    /// How long a list that is missing most peers is not believed; zero: it is believed at once.
    pub mass_delete_hold: Duration,
    /// Accept leases of other prefix lengths than the network's `SubnetLen`.
    pub mixed_lengths: bool,
    /// Take another subnet if the one in `subnet_file` belongs to another host now.
    pub allow_renumber: bool,
    /// Backend to assume where the network config names none, or `udp`. `None`: refuse.
    pub backend_default: Option<String>,
    /// Address of the receiving sockets.
    pub receive_on: ReceiveOn,
    /// What to do with packets that break the ingress policy.
    pub peer_check: Enforcement,
    /// Where the policy is enforced, let the kernel drop datagrams of unknown senders.
    pub socket_filter: bool,
    /// Senders that are accepted without a lease.
    pub allow_peer: Vec<Ipv4Net>,
    /// Destinations outside of the own subnet that peers may send to.
    pub forward_extra: Vec<Ipv4Net>,
    /// Refuse inner sources outside of the network.
    pub strict_sources: bool,
    /// File with the `FLANNEL_*` variables.
    pub subnet_file: PathBuf,
    /// Directory for what must survive a restart: identity and offline cache.
    pub state_dir: PathBuf,
    /// Path of the control socket.
    pub control_socket: PathBuf,
    /// Address and port of the metrics endpoint; empty is off.
    pub metrics_listen: String,
    /// Time between two probes of a peer; zero is off.
    pub probe_interval: Duration,
    /// Masquerade what leaves the overlay; also written to the subnet file.
    pub ip_masq: bool,
    /// Masquerade without `--random-fully`.
    pub ip_masq_fully_random_disable: bool,
    /// Which program installs the rules.
    pub firewall: FirewallChoice,
    /// Time between two checks of the rules; zero is never.
    pub iptables_resync: Duration,
    /// Accept forwarded traffic of the network.
    pub iptables_forward_rules: bool,
    /// Discard packets to the own subnet that no other route takes.
    pub ip_blackhole_route: bool,
    /// Address of the health endpoint.
    pub healthz_ip: String,
    /// TCP port of the health endpoint; 0 is off.
    pub healthz_port: u16,
    /// Number of packet threads; `None`: by the number of CPUs.
    pub workers: Option<NonZeroUsize>,
    /// How the packet loop does its work.
    pub tuning: Tuning,
    /// Leave the TUN device and its routes in place when stopping.
    pub keep_device: bool,
    /// glog's `-v`: see [`log_level`](Self::log_level).
    pub verbosity: i32,
    /// Format of log lines.
    pub log_format: LogFormat,
    /// Every setting as text and its origin, in the order of the help.
    pub settings: Vec<Setting>,
    /// Messages to log once logging is set up.
    pub notices: Vec<Notice>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            store: StoreConfig::default(),
            fail_fast: false,
            iface: Vec::new(),
            iface_regex: Vec::new(),
            iface_can_reach: None,
            public_ip: None,
            public_ipv6: None,
            renew_margin: Duration::from_secs(60 * 60),
            lease_ttl: Duration::from_secs(86_400),
            mass_delete_hold: Duration::from_secs(30),
            mixed_lengths: false,
            allow_renumber: false,
            backend_default: None,
            receive_on: ReceiveOn::Any,
            peer_check: Enforcement::Enforce,
            socket_filter: true,
            allow_peer: Vec::new(),
            forward_extra: Vec::new(),
            strict_sources: false,
            subnet_file: DEFAULT_SUBNET_FILE.into(),
            state_dir: DEFAULT_STATE_DIR.into(),
            control_socket: DEFAULT_CONTROL_SOCKET.into(),
            metrics_listen: DEFAULT_METRICS.to_owned(),
            probe_interval: Duration::from_secs(5),
            ip_masq: false,
            ip_masq_fully_random_disable: false,
            firewall: FirewallChoice::Auto,
            iptables_resync: Duration::from_secs(5),
            iptables_forward_rules: true,
            ip_blackhole_route: false,
            healthz_ip: "0.0.0.0".to_owned(),
            healthz_port: 0,
            workers: None,
            tuning: Tuning::default(),
            keep_device: false,
            verbosity: 0,
            log_format: LogFormat::Text,
            settings: Vec::new(),
            notices: Vec::new(),
        }
    }
}

impl RunOptions {
    /// The level that `-v` asks for. flannel's scale (1 data path, 2 routes, 4 neighbours,
    /// 10 everything) maps to three: up to 0 is info, 1 to 3 is debug, more is trace.
    #[must_use]
    pub fn log_level(&self) -> tracing::Level {
        match self.verbosity {
            ..=0 => tracing::Level::INFO,
            1..=3 => tracing::Level::DEBUG,
            _ => tracing::Level::TRACE,
        }
    }

    /// Where a flag's value comes from; `None` where there is no such flag.
    #[must_use]
    pub fn origin(&self, name: &str) -> Option<Origin> {
        let setting = self.settings.iter().find(|setting| setting.name == name)?;
        Some(setting.origin)
    }
}
