//! The settings of `uvxlan run`, typed, and how one text becomes one setting.
//!
//! The setters used by the flag table (`cli::flags`) live here, so that what a value must look
//! like stands beside the field it fills.

use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::dataplane::ingress_policy::Mode;
use crate::dataplane::offloads::{Offloads, UnknownPart};
use crate::subnet::store::etcd::EtcdOptions;
use crate::subnet::store::etcd_auto::EtcdApi;

/// flannel's default of `--etcd-endpoints`.
pub const DEFAULT_ENDPOINTS: &str = "http://127.0.0.1:4001,http://127.0.0.1:2379";
/// flannel's default of `--etcd-prefix`.
pub const DEFAULT_PREFIX: &str = "/coreos.com/network";
/// flannel's default of `--subnet-file`.
pub const DEFAULT_SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// Default of `--state-dir`.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/uvxlan";
/// Default of `--control-socket`.
pub const DEFAULT_CONTROL_SOCKET: &str = "/run/uvxlan/control.sock";

/// Default of `--metrics-listen`.
pub const DEFAULT_METRICS: &str = "127.0.0.1:9472";

/// A text that must not be seen in logs: `Debug` prints `***`, and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// Where leases lie (`--store`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChoice {
    /// etcd, at the endpoints of `--etcd-endpoints`.
    Etcd,
    /// A directory, shared by all nodes of the network.
    Directory(PathBuf),
}

/// Shape of log lines (`--log-format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// Where datagrams are taken (`--receive-on`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveOn {
    /// To any address, over any interface, as a kernel VTEP.
    Any,
    /// To the chosen (published) address only.
    Public,
    /// To the chosen address, and over the chosen interface only.
    Interface,
}

/// Which program holds masquerade and forward rules (`--firewall`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirewallChoice {
    /// nftables where the network config says `EnableNFTables`, else iptables; the other
    /// where that is not installed.
    Auto,
    /// iptables.
    Iptables,
    /// nftables.
    Nftables,
    /// No rules.
    None,
    /// No rules; they are printed for a person to install.
    Print,
}

/// Where a setting's value comes from. Precedence: command line, environment, default.
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

/// How much a [`Notice`] matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoticeLevel {
    /// Good to know.
    Info,
    /// Something asked for does not happen, or happens otherwise than flannel would.
    Warn,
    /// A value could not be used at all; start-up goes on without it.
    Error,
}

/// A remark made while arguments were read, to be logged once logging is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// How much it matters.
    pub level: NoticeLevel,
    /// One line, without secrets.
    pub text: String,
}

/// Everything `uvxlan run` was asked for.
///
/// Flags that are accepted without effect and carry nothing the daemon could use
/// (`kube-*`, `vmodule`, …) have no field; they appear in [`settings`](Self::settings).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOptions {
    /// etcd URLs in the order given, without blanks; at least one.
    pub etcd_endpoints: Vec<String>,
    /// Key prefix of the network, such as `/coreos.com/network`.
    pub etcd_prefix: String,
    /// Send the password over plain HTTP too.
    pub insecure_etcd: bool,
    /// Which API of etcd is spoken (`--etcd-api`).
    pub etcd_api: EtcdApi,
    /// CA certificates (PEM) that the etcd servers' certificates are checked with.
    pub etcd_ca_file: Option<PathBuf>,
    /// Client certificate (PEM).
    pub etcd_cert_file: Option<PathBuf>,
    /// Key of the client certificate (PEM).
    pub etcd_key_file: Option<PathBuf>,
    /// etcd user name.
    pub etcd_username: Option<String>,
    /// etcd password.
    pub etcd_password: Option<Secret>,
    /// Where leases lie.
    pub store: StoreChoice,
    /// End with status 69 when the store does not answer at start, instead of trying again.
    pub fail_fast: bool,
    /// Interface names or addresses, tried in order.
    pub iface: Vec<String>,
    /// Regular expressions over addresses, then names of interfaces; tried after `iface`.
    pub iface_regex: Vec<String>,
    /// Take the interface and source address of the kernel's route to this address; tried last.
    pub iface_can_reach: Option<Ipv4Addr>,
    /// Address to publish instead of the interface's.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6` as given; without effect yet.
    pub public_ipv6: Option<String>,
    /// How long before a lease's expiry it is renewed: 1 to 1439 minutes.
    pub renew_margin: Duration,
    /// Time to live of a lease: 24 h as flannel's, shorter only in tests.
    pub lease_ttl: Duration,
    /// How long a list is held in which most peers are missing; zero: believed at once.
    pub mass_delete_hold: Duration,
    /// Believe leases of other prefix lengths than the network's `SubnetLen`.
    pub mixed_lengths: bool,
    /// Take another subnet when the one of `subnet_file` belongs to another host now.
    pub allow_renumber: bool,
    /// Backend to assume where the network config names none, or `udp`. `None`: refuse.
    pub backend_default: Option<String>,
    /// Address of the receiving sockets.
    pub receive_on: ReceiveOn,
    /// What to do with packets that do not belong.
    pub peer_check: Mode,
    /// Where the peer check is enforced, let the kernel drop strangers' datagrams.
    pub socket_filter: bool,
    /// Senders that are taken without a lease.
    pub allow_peer: Vec<Ipv4Net>,
    /// Destinations beside the own subnet that peers may send to.
    pub forward_extra: Vec<Ipv4Net>,
    /// Refuse inner sources outside of the network.
    pub strict_sources: bool,
    /// The file with `FLANNEL_*` lines.
    pub subnet_file: PathBuf,
    /// Directory of what must survive a restart (VTEP MAC, previous subnet).
    pub state_dir: PathBuf,
    /// Path of the control socket.
    pub control_socket: PathBuf,
    /// Address and port of the metrics page; empty is off.
    pub metrics_listen: String,
    /// Pause between two probes of a peer; zero is off.
    pub probe_interval: Duration,
    /// Masquerade what leaves the overlay, and `FLANNEL_IPMASQ` of the subnet file.
    pub ip_masq: bool,
    /// Masquerade without `--random-fully`.
    pub ip_masq_fully_random_disable: bool,
    /// Which program holds the rules.
    pub firewall: FirewallChoice,
    /// Pause between two checks of the rules; zero is never.
    pub iptables_resync: Duration,
    /// Whether forward rules are wanted.
    pub iptables_forward_rules: bool,
    /// Whether a blackhole route for the own subnet is wanted; without effect yet.
    pub ip_blackhole_route: bool,
    /// Address of the health endpoint.
    pub healthz_ip: String,
    /// TCP port of the health endpoint, 0 is off.
    pub healthz_port: u16,
    /// Packet threads; `None`: by the number of CPUs.
    pub workers: Option<NonZeroUsize>,
    /// What to hand to the kernel in large pieces.
    pub offloads: Offloads,
    /// How long a worker looks for the next packet before it sleeps.
    pub spin: Duration,
    /// Leave the TUN device and its routes in place when stopping.
    pub keep_device: bool,
    /// glog's `-v`: see [`log_level`](Self::log_level).
    pub verbosity: i32,
    /// Shape of log lines.
    pub log_format: LogFormat,
    /// Every setting as text with its origin, in the order of the help.
    pub settings: Vec<Setting>,
    /// What is to be logged once logging is set up, in the order it was noticed.
    pub notices: Vec<Notice>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            etcd_endpoints: DEFAULT_ENDPOINTS.split(',').map(str::to_owned).collect(),
            etcd_prefix: DEFAULT_PREFIX.to_owned(),
            insecure_etcd: false,
            etcd_api: EtcdApi::Auto,
            etcd_ca_file: None,
            etcd_cert_file: None,
            etcd_key_file: None,
            etcd_username: None,
            etcd_password: None,
            store: StoreChoice::Etcd,
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
            peer_check: Mode::Enforce,
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
            offloads: Offloads::AUTO,
            spin: Duration::from_micros(100),
            keep_device: false,
            verbosity: 0,
            log_format: LogFormat::Text,
            settings: Vec::new(),
            notices: Vec::new(),
        }
    }
}

impl RunOptions {
    /// How etcd is reached.
    #[must_use]
    pub fn etcd(&self) -> EtcdOptions {
        EtcdOptions {
            endpoints: self.etcd_endpoints.clone(),
            prefix: self.etcd_prefix.clone(),
            ca_file: self.etcd_ca_file.clone(),
            cert_file: self.etcd_cert_file.clone(),
            key_file: self.etcd_key_file.clone(),
            username: self.etcd_username.clone(),
            password: self
                .etcd_password
                .as_ref()
                .map(|secret| secret.expose().to_owned()),
            insecure_password: self.insecure_etcd,
            ..EtcdOptions::default()
        }
    }

    /// The level that `-v` asks for. flannel's scale (1 data path, 2 routes, 4 neighbours,
    /// 10 all) is mapped to three: up to 0 is info, 1 to 3 is debug, more is trace.
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

/// Why a text is not a value of its flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// Not a boolean, or not a number; what was expected. Where it comes from the
    /// environment flannel goes on with the default, and so do we.
    Type(String),
    /// Of the right type and unusable; what was expected. Going on without such a value
    /// would use another address, endpoint or store than the one asked for.
    Value(String),
    /// `--kube-subnet-mgr` was asked for.
    KubeSubnetManager,
}

fn expected<T>(what: &str) -> Result<T, Invalid> {
    Err(Invalid::Value(what.to_owned()))
}

/// Go's `strconv.ParseBool`.
pub(crate) fn boolean(text: &str) -> Result<bool, Invalid> {
    match text.trim_ascii() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Invalid::Type("true or false (or 1, 0, t, f)".to_owned())),
    }
}

/// Go's `strconv.ParseInt` with base 0 (decimal, `0x`, `0o`, `0b`, and a leading 0 for
/// octal; no underscores), within `min..=max`.
pub(crate) fn integer(text: &str, min: i64, max: i64) -> Result<i64, Invalid> {
    let range = format!("a whole number from {min} to {max}");
    let Some(number) = go_integer(text.trim_ascii()) else {
        return Err(Invalid::Type(range));
    };
    if (min..=max).contains(&number) {
        Ok(number)
    } else {
        Err(Invalid::Value(range))
    }
}

fn go_integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, lower.get(2..)?),
        [b'0', b'o', ..] => (8, lower.get(2..)?),
        [b'0', b'b', ..] => (2, lower.get(2..)?),
        [b'0', _, ..] => (8, lower.get(1..)?),
        _ => (10, lower.as_str()),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// A count within `min..=max`, both of which fit `u32`.
pub(crate) fn count(text: &str, min: u32, max: u32) -> Result<u32, Invalid> {
    let number = integer(text, min.into(), max.into())?;
    u32::try_from(number).or_else(|_| expected(&format!("a whole number from {min} to {max}")))
}

/// A text, empty meaning "not given", as flannel's empty defaults.
pub(crate) fn optional(text: &str) -> Option<&str> {
    let text = text.trim_ascii();
    (!text.is_empty()).then_some(text)
}

/// A text that must say something.
pub(crate) fn required(text: &str, what: &str) -> Result<String, Invalid> {
    optional(text).map_or_else(|| expected(what), |text| Ok(text.to_owned()))
}

/// An address, empty meaning "not given".
pub(crate) fn address<T: std::str::FromStr>(text: &str, what: &str) -> Result<Option<T>, Invalid> {
    match optional(text) {
        None => Ok(None),
        Some(text) => text.parse().map(Some).or_else(|_| expected(what)),
    }
}

/// A comma list of etcd URLs. flannel splits without trimming and then fails on the blank;
/// here blanks around an item are dropped, and so are empty items.
pub(crate) fn endpoints(text: &str) -> Result<Vec<String>, Invalid> {
    let items: Vec<String> = text
        .split(',')
        .filter_map(optional)
        .map(str::to_owned)
        .collect();
    if items.is_empty() || !items.iter().all(|item| is_endpoint(item)) {
        return expected("a comma list of URLs such as https://10.0.0.1:2379");
    }
    Ok(items)
}

fn is_endpoint(text: &str) -> bool {
    let host = match text.split_once("://") {
        Some((scheme, host)) => {
            let http = ["http", "https"]
                .iter()
                .any(|known| scheme.eq_ignore_ascii_case(known));
            if !http {
                return false;
            }
            host
        }
        None => text,
    };
    let outlandish = |character: char| {
        character.is_whitespace() || character.is_control() || matches!(character, '"' | '\'')
    };
    !host.is_empty() && !host.starts_with('/') && !text.contains(outlandish)
}

/// `etcd` or `dir:PATH`.
pub(crate) fn store(text: &str) -> Result<StoreChoice, Invalid> {
    match text.trim_ascii() {
        "etcd" => Ok(StoreChoice::Etcd),
        other => match other.strip_prefix("dir:") {
            Some(path) if !path.is_empty() => Ok(StoreChoice::Directory(path.into())),
            _ => expected("etcd, or dir: and a path, such as dir:/mnt/shared/leases"),
        },
    }
}

/// One of a few words.
/// Reads a prefix; an address alone is one of 32 bits.
pub(crate) fn network(text: &str) -> Result<Ipv4Net, Invalid> {
    let text = text.trim_ascii();
    let network = text
        .parse::<Ipv4Net>()
        .or_else(|_| text.parse::<Ipv4Addr>().map(Ipv4Net::from));
    network
        .map(|network| network.trunc())
        .or_else(|_| expected("a network such as 192.0.2.0/24, or an address"))
}

/// Reads `--offload`.
pub(crate) fn offloads(text: &str) -> Result<Offloads, Invalid> {
    text.trim_ascii()
        .parse()
        .map_err(|error: UnknownPart| Invalid::Value(error.to_string()))
}

pub(crate) fn choice<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, Invalid> {
    let text = text.trim_ascii();
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    expected(&words.join(" or "))
}
