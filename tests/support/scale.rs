//! Two daemons, a real etcd, and a large cluster's leases being added, removed and changed.

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use tokio::task::JoinSet;
use uvxlan::sys::netns::Namespace;
use uvxlan::testbed::Topology;

use super::etcd::with_client;
use super::fleet::{key, put_all, subnet, value};
use super::nodes::{EtcdOnHost, NodeUnderTest, PREFIX, eventually};

/// The daemons' own subnets come after the fleet's.
const CONFIG: &str = r#"{"Network": "10.0.0.0/8", "SubnetLen": 24, "SubnetMin": "10.200.0.0", "SubnetMax": "10.250.0.0", "Backend": {"Type": "vxlan"}}"#;
/// A deleted lease is added again after so many others were deleted.
const LAG: u32 = 50;

pub(crate) struct Scale {
    pub(crate) topology: Topology,
    pub(crate) etcd: EtcdOnHost,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) leases: u32,
}

/// Latency and cost of changes.
pub(crate) struct Churn {
    /// Time from the put or delete request to the change of the kernel's route, sorted.
    pub(crate) delays: Vec<Duration>,
    /// Puts and deletes.
    pub(crate) events: u32,
    /// Other requests that etcd served meanwhile.
    pub(crate) requests: u64,
    /// Duration of the run.
    pub(crate) took: Duration,
    /// CPU time of the first daemon.
    pub(crate) cpu: Duration,
}

impl Scale {
    /// An etcd with the config and so many leases.
    pub(crate) fn new(leases: u32) -> Self {
        let topology = Topology::with_hosts(3).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let etcd = EtcdOnHost::start(&topology.hosts()[2], folder.path());
        etcd.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
        // The fleet's hosts are behind a router that discards: as neighbours on the link they would
        // fill the kernel's neighbour table (1,024 entries) and evict the containers.
        let router = &topology.hosts()[2];
        let via = router.address().to_string();
        for host in topology.hosts() {
            let way = match host.address() == router.address() {
                true => &["blackhole", "172.16.0.0/12"][..],
                false => &["172.16.0.0/12", "via", &via],
            };
            let mut command = Command::new("ip");
            command.args(["route", "add"]).args(way);
            let output = host.namespace().command(command).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        let this = Self {
            topology,
            etcd,
            folder,
            leases,
        };
        this.with_client(async |mut client| {
            put_all(&mut client, (1..=leases).map(|n| (key(n), value(n, 0)))).await;
        });
        this
    }

    /// Runs `work` with an etcd client on etcd's host.
    fn with_client<T: Send>(&self, work: impl AsyncFnOnce(etcd_client::Client) -> T + Send) -> T {
        with_client(&self.topology.hosts()[2], self.etcd.url(), work)
    }

    pub(crate) fn start(&self, number: usize) -> NodeUnderTest {
        let flags = [format!("--etcd-endpoints={}", self.etcd.url())];
        NodeUnderTest::start(&self.topology.hosts()[number], self.folder.path(), &flags)
    }

    /// The subnets in the store.
    pub(crate) fn stored(&self) -> BTreeSet<String> {
        let prefix = format!("{PREFIX}/subnets/");
        let text = self.etcd.ctl(&["get", "--prefix", "--keys-only", &prefix]);
        let keys = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        keys.map(|name| name.replace('-', "/")).collect()
    }

    /// Waits until the node has a route for each lease except its own, and no other.
    pub(crate) fn routes_are_the_stores(&self, node: &NodeUnderTest) {
        let own = node.env.unwrap().subnet.to_string();
        let mut wanted = self.stored();
        assert!(wanted.remove(&own), "{own} is leased");
        eventually("the kernel's routes are the leases'", || {
            routes(node) == wanted
        });
    }

    /// Requests of all kinds that etcd has started to serve.
    fn requests(&self) -> u64 {
        let host = &self.topology.hosts()[2];
        let address = (host.address(), 2379);
        let connected = host.namespace().run(|| TcpStream::connect(address));
        let mut stream = connected.unwrap().unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        // Messages, not calls: a watch or a keepalive is one call with many messages.
        let lines = page
            .lines()
            .filter(|line| line.starts_with("grpc_server_msg_received_total{"));
        let counts = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        counts.sum::<f64>() as u64
    }

    /// Writes at a steady rate, one third each updates, deletes and new leases, while the first
    /// daemon watches.
    pub(crate) fn churn(&self, node: &NodeUnderTest, rate: u32, seconds: u32) -> Churn {
        let watch = RouteWatch::start(node.host.namespace());
        let pid = node.daemon.as_ref().unwrap().pid();
        let (cpu, requests, start) = (cpu(pid), self.requests(), Instant::now());
        let events = rate * seconds;
        let half = self.leases / 2;
        self.with_client(async |client| {
            let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
            let mut writes = JoinSet::new();
            for event in 0..events {
                tick.tick().await;
                let (turn, generation) = (event / 3, (event / 3 / half + 1) as u8);
                let changed = 1 + turn % half;
                let deleted = half + 1 + turn % half;
                let (number, put) = match event % 3 {
                    0 => (changed, true),
                    1 => (deleted, false),
                    _ if turn < LAG => (changed, true),
                    _ => (half + 1 + (turn - LAG) % half, true),
                };
                if number > half {
                    watch.expect(subnet(number), put);
                }
                let mut client = client.clone();
                writes.spawn(async move {
                    match put {
                        true => drop(
                            client
                                .put(key(number), value(number, generation), None)
                                .await?,
                        ),
                        false => drop(client.delete(key(number), None).await?),
                    }
                    Ok::<_, etcd_client::Error>(())
                });
                while let Some(done) = writes.try_join_next() {
                    done.unwrap().unwrap();
                }
            }
            while let Some(done) = writes.join_next().await {
                done.unwrap().unwrap();
            }
        });
        let took = start.elapsed();
        eventually("all changes have arrived", || watch.is_empty());
        Churn {
            delays: watch.end(),
            events,
            requests: (self.requests() - requests).saturating_sub(u64::from(events)),
            took,
            cpu: self::cpu(pid) - cpu,
        }
    }
}

/// Subnets that the node's kernel routes to the overlay device.
pub(crate) fn routes(node: &NodeUnderTest) -> BTreeSet<String> {
    let text = node.output("ip", &["route", "show", "proto", "158"]);
    let lines = text.lines().filter_map(|line| line.split(' ').next());
    lines.map(str::to_owned).collect()
}

/// Current and peak resident memory of a process, in KiB.
pub(crate) fn memory(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    (value("VmRSS:").unwrap_or(0), value("VmHWM:").unwrap_or(0))
}

/// CPU time of a process so far. The kernel counts hundredths of a second.
pub(crate) fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = fields.split(' ').skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Pending changes: which route is to appear or disappear, and since when.
type Expected = HashMap<(Ipv4Net, bool), Instant>;

/// Watches the routes of a namespace.
struct RouteWatch {
    monitor: std::process::Child,
    state: Arc<Mutex<(Expected, Vec<Duration>)>>,
}

impl RouteWatch {
    fn start(namespace: &Namespace) -> Self {
        let mut command = Command::new("ip");
        command
            .args(["-o", "monitor", "route"])
            .stdout(Stdio::piped());
        let command = uvxlan::sys::process::dies_with_parent(command);
        let mut monitor = namespace.command(command).spawn().unwrap();
        let lines = BufReader::new(monitor.stdout.take().unwrap()).lines();
        let state = Arc::new(Mutex::new((Expected::new(), Vec::new())));
        let shared = Arc::clone(&state);
        // Ends with the monitor.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let now = Instant::now();
                let gone = line.strip_prefix("Deleted ");
                let route = gone.unwrap_or(&line).split(' ').next();
                let Some(Ok(subnet)) = route.map(str::parse) else {
                    continue;
                };
                let (expected, delays) = &mut *shared.lock().unwrap();
                if let Some(since) = expected.remove(&(subnet, gone.is_none())) {
                    delays.push(now - since);
                }
            }
        });
        // It does not report when it is listening.
        std::thread::sleep(Duration::from_millis(500));
        Self { monitor, state }
    }

    fn expect(&self, subnet: Ipv4Net, comes: bool) {
        let (expected, _) = &mut *self.state.lock().unwrap();
        expected.insert((subnet, comes), Instant::now());
    }

    fn is_empty(&self) -> bool {
        self.state.lock().unwrap().0.is_empty()
    }

    fn end(mut self) -> Vec<Duration> {
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
        let mut delays = std::mem::take(&mut self.state.lock().unwrap().1);
        delays.sort_unstable();
        delays
    }
}
