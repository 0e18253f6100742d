//! Daemons on hosts in namespaces, and a real etcd on one of them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use uvxlan::testbed::traffic::{PingReport, PingRequest, TransferRequest, ping, tcp_transfer};
use uvxlan::testbed::{Container, DaemonProcess, Host, SubnetEnv, Topology, available};
use uvxlan::wire::vxlan::EncapTemplate;
use uvxlan::wire::{MacAddr, Vni};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_uvxlan");
pub(crate) const PREFIX: &str = "/coreos.com/network";
pub(crate) const CONFIG: &str = r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.5.10.0", "SubnetMax": "10.5.250.0", "Backend": {"Type": "vxlan"}}"#;
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// Whether namespaces can be created and these programs are installed.
pub(crate) fn possible(programs: &[&str]) -> Result<(), String> {
    available()?;
    for program in programs {
        let found = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        found.map_err(|error| format!("no program {program}: {error}"))?;
    }
    Ok(())
}

/// Runs promtool, if it is installed.
pub(crate) fn promtool(arguments: &[&str], stdin: &str) {
    if super::etcd::program("promtool").is_none() {
        return;
    }
    let mut check = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = check.stdin.take().unwrap();
    input.write_all(stdin.as_bytes()).unwrap();
    drop(input);
    let output = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // Mere recommendations do not change its exit status.
    assert!(!said.contains("should"), "{said}");
}

/// Waits until a condition becomes true.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !check() {
        assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Creates or replaces a script. Another process writes it: a child that another test is just
/// starting still has this process's file descriptors, and a file that is open for writing
/// cannot be executed.
pub(crate) fn executable(path: &Path, text: &str) {
    let _ = std::fs::remove_file(path);
    let mut install = Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(path);
    let mut install = install.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = install.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    assert!(install.wait().unwrap().success(), "{}", path.display());
}

/// A lease as flannel would have written it, without our own fields.
pub(crate) fn without_writer(value: &str) -> String {
    let mut value = value.to_owned();
    for field in [",\"Node\":", ",\"Instance\":", ",\"Probe\":"] {
        if let Some((before, after)) = value.split_once(field) {
            let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
            assert_ne!(rest.len(), after.len(), "a number: {value}");
            value = format!("{before}{rest}");
        }
    }
    value
}

/// The same for what is promised within three seconds, with two more for a slow test machine.
pub(crate) fn soon(what: &str, check: impl FnMut() -> bool) {
    let start = Instant::now();
    eventually(what, check);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(5), "only after {took:?}: {what}");
}

/// An etcd with one member on a host, on the usual ports. Killed on drop.
pub(crate) struct EtcdOnHost {
    host: Host,
    data: PathBuf,
    child: Option<Child>,
}

impl EtcdOnHost {
    pub(crate) fn start(host: &Host, folder: &Path) -> Self {
        let mut this = Self {
            host: host.clone(),
            data: folder.join("etcd"),
            child: None,
        };
        this.run();
        this
    }

    /// Starts it on its data, and waits until it answers.
    pub(crate) fn run(&mut self) {
        let log = std::fs::File::create(self.data.with_extension("log")).unwrap();
        let mut command = Command::new("etcd");
        let address = self.host.address();
        let client = format!("http://{address}:2379");
        let peer = format!("http://{address}:2380");
        command
            .arg("--name=one")
            .arg("--data-dir")
            .arg(&self.data)
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("one={peer}")])
            .args(["--heartbeat-interval=50", "--election-timeout=500"])
            .stdout(Stdio::null())
            .stderr(log);
        let command = uvxlan::sys::process::dies_with_parent(command);
        let child = self.host.namespace().command(command).spawn().unwrap();
        self.child = Some(child);
        eventually("etcd answers", || {
            self.try_ctl(&["endpoint", "health"]).is_some()
        });
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}:2379", self.host.address())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGSTOP or SIGCONT: a stopped one accepts connections but does not answer.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.child.as_ref().unwrap().id();
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn try_ctl(&self, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.url()))
            .args(arguments);
        let output = self.host.namespace().command(command).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then_some(text)
    }

    /// Runs etcdctl; returns its output.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        self.try_ctl(arguments)
            .unwrap_or_else(|| panic!("etcdctl {arguments:?} failed"))
    }

    /// All leases: pairs of key below the prefix and value.
    pub(crate) fn leases(&self) -> Vec<(String, String)> {
        let prefix = format!("{PREFIX}/subnets/");
        let text = self.ctl(&["get", "--prefix", &prefix]);
        let lines: Vec<_> = text.lines().collect();
        lines
            .chunks(2)
            .map(|pair| {
                let key = pair[0].strip_prefix(&prefix).unwrap();
                (key.to_owned(), pair[1].to_owned())
            })
            .collect()
    }
}

impl Drop for EtcdOnHost {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A frame that a peer could have sent to a node's container, except for its inner source.
pub(crate) fn spoofed(to: &NodeUnderTest, store: &Path, source: [u8; 4]) -> Vec<u8> {
    let subnet = to.env.unwrap().subnet.to_string().replace('/', "-");
    let record = std::fs::read(store.join("subnets").join(subnet)).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let mac = record["BackendData"]["VtepMAC"].as_str().unwrap();
    let mac: MacAddr = mac.parse().unwrap();
    let head = EncapTemplate::ipv4(Vni::DEFAULT, MacAddr([2; 6])).towards(mac);
    let mut frame = head.to_vec();
    let destination = to.container().address().octets();
    etherparse::PacketBuilder::ipv4(source, destination, 63)
        .udp(9, 9)
        .write(&mut frame, &[0x5a; 50])
        .unwrap();
    frame
}

/// A counter in the line that a daemon logs when it stops; 0 if it is missing.
pub(crate) fn counter(log: &str, name: &str) -> u64 {
    let words = log.split_whitespace();
    let mut pairs = words.filter_map(|word| {
        let word = word.strip_prefix("counters=").unwrap_or(word);
        word.split_once('=')
    });
    let found = pairs.find(|(found, _)| *found == name);
    found.map_or(0, |(_, value)| value.parse().unwrap_or(0))
}

/// Hosts for daemons, and another one with their etcd.
pub(crate) struct Cluster {
    pub(crate) topology: Topology,
    pub(crate) etcd: EtcdOnHost,
    pub(crate) folder: tempfile::TempDir,
}

impl Cluster {
    pub(crate) fn new(daemons: usize, config: &str) -> Self {
        let topology = Topology::with_hosts(daemons + 1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let etcd = EtcdOnHost::start(topology.hosts().last().unwrap(), folder.path());
        etcd.ctl(&["put", &format!("{PREFIX}/config"), config]);
        Self {
            topology,
            etcd,
            folder,
        }
    }

    pub(crate) fn start(&self, number: usize) -> NodeUnderTest {
        self.start_with(number, &[])
    }

    pub(crate) fn start_with(&self, number: usize, more: &[&str]) -> NodeUnderTest {
        let endpoints = format!("--etcd-endpoints={}", self.etcd.url());
        let more = more.iter().map(|flag| (*flag).to_owned());
        let flags: Vec<String> = std::iter::once(endpoints).chain(more).collect();
        NodeUnderTest::start(&self.topology.hosts()[number], self.folder.path(), &flags)
    }
}

/// A host with our daemon, and a container once the daemon serves a subnet.
pub(crate) struct NodeUnderTest {
    pub(crate) program: PathBuf,
    pub(crate) host: Host,
    pub(crate) folder: PathBuf,
    pub(crate) flags: Vec<String>,
    pub(crate) daemon: Option<DaemonProcess>,
    pub(crate) env: Option<SubnetEnv>,
    pub(crate) container: Option<Container>,
}

impl NodeUnderTest {
    /// Starts the daemon, waits until it serves, and adds a container.
    pub(crate) fn start(host: &Host, folder: &Path, flags: &[String]) -> Self {
        Self::start_program(Path::new(PROGRAM), host, folder, flags)
    }

    /// As [`Self::start`], with another program that becomes the daemon.
    pub(crate) fn start_program(
        program: &Path,
        host: &Host,
        folder: &Path,
        flags: &[String],
    ) -> Self {
        let mut this = Self {
            program: program.to_owned(),
            host: host.clone(),
            folder: folder.join(host.node().name()),
            flags: flags.to_vec(),
            daemon: None,
            env: None,
            container: None,
        };
        this.start_daemon();
        let env = this.env.unwrap();
        this.container = Some(host.add_container(env.subnet, env.mtu).unwrap());
        this
    }

    /// Starts the daemon for the first time, or again.
    pub(crate) fn start_daemon(&mut self) {
        let flags = self.flags.iter().map(String::as_str);
        let started = DaemonProcess::start(&self.program, &self.host, &self.folder, flags);
        let mut daemon = started.unwrap();
        self.env = Some(daemon.ready(TIMEOUT).unwrap());
        self.daemon = Some(daemon);
    }

    /// Terminates the daemon; returns its log.
    pub(crate) fn stop_daemon(&mut self) -> String {
        let daemon = self.daemon.take().unwrap();
        let status = daemon.terminate(TIMEOUT).unwrap();
        assert!(status.success(), "{status}");
        self.log()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    pub(crate) fn container(&self) -> &Container {
        self.container.as_ref().unwrap()
    }

    /// Runs a program in the host's namespace; returns its output.
    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(arguments);
        let output = self.host.namespace().command(command).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs one of our commands against the daemon, in the host's namespace.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .arg("--control-socket")
            .arg(self.folder.join("control"));
        self.host.namespace().command(command).output().unwrap()
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        let output = self.ask(&["status", "--json"]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs `ip` in the host's namespace, which must succeed.
    pub(crate) fn change(&self, arguments: &[&str]) {
        let mut command = Command::new("ip");
        command.args(arguments);
        let output = self.host.namespace().command(command).output().unwrap();
        assert!(output.status.success(), "ip {arguments:?}: {output:?}");
    }

    /// Echo requests, 50 ms apart, from our container to the other's.
    pub(crate) fn ping(&self, other: &Self, count: u16) -> PingReport {
        let request = PingRequest {
            count,
            ..PingRequest::new(other.container().address())
        };
        ping(self.container().namespace(), request).unwrap()
    }

    /// Whether one echo request is answered.
    pub(crate) fn reaches(&self, other: &Self) -> bool {
        let request = PingRequest {
            count: 1,
            timeout: Duration::from_millis(300),
            ..PingRequest::new(other.container().address())
        };
        ping(self.container().namespace(), request).is_ok_and(|report| report.is_complete())
    }

    pub(crate) fn transfer(&self, other: &Self, bytes: u64) {
        let request = TransferRequest::new(other.container().address(), bytes);
        let (from, to) = (self.container().namespace(), other.container().namespace());
        let report = tcp_transfer(from, to, request, |_| ()).unwrap();
        assert!(report.is_intact(), "{report:?}");
    }
}

/// Runs `phase` while the containers ping each other, and asserts that nothing was lost.
pub(crate) fn losing_nothing<T>(nodes: &[NodeUnderTest; 2], phase: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    let request = PingRequest {
        count: 20,
        interval: Duration::from_millis(20),
        // On a busy machine replies are late; only one that never arrives is lost.
        timeout: Duration::from_secs(3),
        ..PingRequest::new(nodes[1].container().address())
    };
    let namespace = nodes[0].container().namespace();
    std::thread::scope(|scope| {
        let pinging = scope.spawn(|| {
            let mut rounds = 0;
            loop {
                let report = ping(namespace, request).unwrap();
                assert!(report.is_complete(), "round {rounds}: {report:?}");
                rounds += 1;
                if over.load(Ordering::Relaxed) {
                    return rounds;
                }
            }
        });
        // Also after a panic of the phase, or the scope would wait forever.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let ending = Over(&over);
        let outcome = phase();
        drop(ending);
        let rounds = pinging.join().unwrap();
        assert!(rounds > 0);
        outcome
    })
}
