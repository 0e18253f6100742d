//! The daemon under a service manager: when it reports READY, the effect of signals, and the
//! argument list of a widely copied installation guide.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::process::{Pid, Signal, kill_process};
use uvxlan::testbed::{Host, Topology};

use crate::support::etcd;
use crate::support::need;
use crate::support::nodes::{self, EtcdOnHost, PROGRAM, TIMEOUT, eventually, possible};

const CONFIG: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
/// A peer's lease, whose route shows that the daemon serves.
const PEER: (&str, &str) = (
    "10.5.200.0-24",
    r#"{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:11:22:33:44:55"}}"#,
);
/// A stop must not wait for the datastore: far below the client's own timeout.
const PROMPTLY: Duration = Duration::from_secs(6);

/// A host, and a folder with a directory store and the daemon's files.
struct Lab {
    topology: Topology,
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let topology = Topology::two_hosts().unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("store/subnets")).unwrap();
        Self { topology, folder }
    }

    /// With a config, and a peer.
    fn with_config() -> Self {
        let lab = Self::new();
        fs::write(lab.path("store/config"), CONFIG).unwrap();
        fs::write(lab.path("store/subnets").join(PEER.0), PEER.1).unwrap();
        lab
    }

    fn host(&self) -> &Host {
        &self.topology.hosts()[0]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `uvxlan run` on the directory store.
    fn serve(&self, flags: &[&str]) -> Service {
        let store = format!("--store=dir:{}", self.path("store").display());
        let mut arguments = vec!["run", &store];
        arguments.extend(flags);
        self.start(Path::new(PROGRAM), &arguments)
    }

    /// The daemon with these arguments only; its files are set by the environment.
    fn start(&self, program: &Path, arguments: &[&str]) -> Service {
        let address = self.path("notify");
        let _ = fs::remove_file(&address);
        let socket = UnixDatagram::bind(&address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let log = self.path("log");
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("NOTIFY_SOCKET", &address)
            .env("WATCHDOG_USEC", "10000000")
            .env("FLANNELD_SUBNET_FILE", self.path("subnet.env"))
            .env("UVXLAN_STATE_DIR", self.path("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap());
        let command = uvxlan::sys::process::dies_with_parent(command);
        Service {
            child: self.host().namespace().command(command).spawn().unwrap(),
            socket,
            told: String::new(),
            log,
        }
    }

    /// A program in the host's namespace.
    fn here(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(arguments);
        self.host().namespace().command(command).output().unwrap()
    }

    fn has_device(&self) -> bool {
        let output = self.here("ip", &["-o", "link"]);
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout).contains("flannel.1")
    }

    fn has_route(&self) -> bool {
        let output = self.here("ip", &["route", "show", "10.5.200.0/24"]);
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout).contains("dev flannel.1")
    }

    fn assert_untouched(&self) {
        assert!(!self.has_device(), "no device before the lease");
        assert!(!self.path("subnet.env").exists());
        assert!(!self.path("state/state.json").exists());
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running daemon, and its messages to the service manager. Killed on drop.
struct Service {
    child: Child,
    socket: UnixDatagram,
    told: String,
    log: PathBuf,
}

impl Service {
    /// All messages so far.
    fn told(&mut self) -> &str {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            self.told.push_str(&text(&buffer[..length]));
            self.told.push('\n');
        }
        &self.told
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the log or the messages contain these words.
    fn until(&mut self, words: &str) {
        eventually(words, || {
            let found = self.told().contains(words) || self.log().contains(words);
            let ended = self.child.try_wait().unwrap();
            assert!(found || ended.is_none(), "{ended:?}: {}", self.log());
            found
        });
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn ended(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "runs after {within:?}: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(&mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.ended(TIMEOUT).code(), Some(0), "{}", self.log());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_datastore_that_is_down_is_waited_for_without_ready() {
    need!(possible(&["ip", "etcd", "etcdctl"]));
    let lab = Lab::new();
    let other = &lab.topology.hosts()[1];
    let endpoint = format!("--etcd-endpoints=http://{}:2379", other.address());
    let mut service = lab.start(Path::new(PROGRAM), &["run", &endpoint]);
    service.until("STATUS=waiting for the datastore");
    service.until("EXTEND_TIMEOUT_USEC=");
    service.until("the datastore does not answer; trying again");
    assert!(
        service.log().contains(":2379"),
        "it names the endpoint: {}",
        service.log()
    );
    assert!(!service.told().contains("READY=1"));
    lab.assert_untouched();

    // It starts up, first without and then with a config.
    let etcd = EtcdOnHost::start(other, lab.folder.path());
    service.until("Couldn't fetch network config");
    assert!(!service.told().contains("READY=1"));
    lab.assert_untouched();
    etcd.ctl(&["put", &format!("{}/config", nodes::PREFIX), CONFIG]);
    service.until("READY=1");
    assert!(lab.path("subnet.env").exists() && lab.has_device());
    assert_eq!(etcd.leases().len(), 1);
    service.stop();
    assert!(service.told().contains("STOPPING=1"));
    assert_eq!(etcd.leases().len(), 1, "the lease stays");
}

#[test]
fn sigterm_ends_every_kind_of_waiting_promptly() {
    need!(possible(&["ip"]));
    let lab = Lab::new();
    // Accepts connections, and never answers.
    let silent = lab
        .host()
        .namespace()
        .run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
        .unwrap();
    silent.set_nonblocking(true).unwrap();
    let port = silent.local_addr().unwrap().port();

    let endpoint = format!("--etcd-endpoints=http://127.0.0.1:{port}");
    let mut service = lab.start(Path::new(PROGRAM), &["run", &endpoint]);
    let mut connections = Vec::new();
    eventually("it connects", || {
        connections.extend(silent.accept().ok());
        !connections.is_empty()
    });
    service.signal(Signal::TERM);
    assert_eq!(service.ended(PROMPTLY).code(), Some(0), "{}", service.log());

    // The address is the other host's, where nothing listens.
    let endpoint = format!(
        "--etcd-endpoints=http://{}:9",
        lab.topology.hosts()[1].address()
    );
    let mut service = lab.start(Path::new(PROGRAM), &["run", &endpoint]);
    service.until("the datastore does not answer; trying again");
    service.signal(Signal::INT);
    assert_eq!(service.ended(PROMPTLY).code(), Some(0), "{}", service.log());

    // It is up, without a config.
    let mut service = lab.serve(&[]);
    service.until("Couldn't fetch network config");
    service.signal(Signal::TERM);
    assert_eq!(service.ended(PROMPTLY).code(), Some(0), "{}", service.log());
    assert!(!service.told().contains("READY=1"));
    lab.assert_untouched();
}

#[test]
fn without_a_subnet_file_there_is_no_ready() {
    need!(possible(&["ip"]));
    let lab = Lab::with_config();
    let file = lab.path("a file");
    fs::write(&file, "").unwrap();
    let nowhere = file.join("subnet.env");
    let mut service = lab.serve(&[&format!("--subnet-file={}", nowhere.display())]);
    assert_eq!(service.ended(TIMEOUT).code(), Some(73), "{}", service.log());
    assert!(!service.told().contains("READY=1"), "{}", service.told());
    let log = service.log();
    assert!(log.contains("write the subnet file"), "{log}");
    assert!(log.contains(nowhere.to_str().unwrap()), "{log}");
    lab.assert_untouched();
    let leases = fs::read_dir(lab.path("store/subnets")).unwrap().count();
    assert_eq!(
        leases, 1,
        "the peer's lease only, none of a start that cannot succeed"
    );
}

#[test]
fn at_ready_everything_is_in_place() {
    need!(possible(&["ip"]));
    let lab = Lab::with_config();
    let mut service = lab.serve(&[]);
    service.until("READY=1");
    let env = fs::read_to_string(lab.path("subnet.env")).unwrap();
    assert!(env.starts_with("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5."));
    assert!(env.ends_with("/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"));
    assert!(
        lab.has_route(),
        "with the routes of all peers known at that time"
    );
    assert_eq!(service.told().matches("READY=1").count(), 1);
    service.stop();
}

#[test]
fn the_watchdog_is_fed_while_packet_threads_run() {
    need!(possible(&["ip"]));
    let lab = Lab::with_config();
    let mut service = lab.serve(&[]);
    service.until("READY=1");
    // Idle ones too, well within the limit of ten seconds.
    let deadline = Instant::now() + Duration::from_secs(10);
    while service.told().matches("WATCHDOG=1").count() < 3 {
        assert!(Instant::now() < deadline, "{}", service.told());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(service.told().contains("STATUS=serving 10.5."));
    assert!(!service.log().contains("worker_stuck"), "{}", service.log());
    service.stop();
}

/// Runs `work` while one thread of another process is stopped; its other threads run on.
fn while_stopped<T>(thread: i32, work: impl FnOnce() -> T) -> T {
    /// Lets the thread run on, even after a panic: its process could not end otherwise.
    struct Stopped(nix::unistd::Pid);

    impl Drop for Stopped {
        fn drop(&mut self) {
            let _ = ptrace::detach(self.0, None);
        }
    }

    let thread = nix::unistd::Pid::from_raw(thread);
    ptrace::seize(thread, ptrace::Options::empty()).unwrap();
    let _stopped = Stopped(thread);
    ptrace::interrupt(thread).unwrap();
    let status = waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
    assert!(matches!(status, WaitStatus::PtraceEvent(..)), "{status:?}");
    work()
}

/// A timer would go on feeding it.
#[test]
fn the_watchdog_is_not_fed_while_a_packet_thread_is_stuck() {
    need!(possible(&["ip"]));
    let lab = Lab::with_config();
    let mut service = lab.serve(&["--workers=2"]);
    service.until("WATCHDOG=1");
    let tasks = fs::read_dir(format!("/proc/{}/task", service.child.id())).unwrap();
    let is_packet_thread = |task: &PathBuf| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("uvxlan-"))
    };
    let mut tasks = tasks.map(|task| task.unwrap().path());
    let thread = tasks.find(is_packet_thread).unwrap();
    let thread = thread.file_name().unwrap().to_str().unwrap().parse();
    let fed = while_stopped(thread.unwrap(), || {
        service.until("worker_stuck");
        let count = |service: &mut Service| service.told().matches("WATCHDOG=1").count();
        let before = count(&mut service);
        // More than two checks.
        std::thread::sleep(Duration::from_secs(5));
        assert_eq!(count(&mut service), before, "{}", service.log());
        before
    });
    eventually("it continues", || {
        service.told().matches("WATCHDOG=1").count() > fed
    });
    service.stop();
}

#[test]
fn either_signal_takes_the_device_and_leaves_the_records() {
    need!(possible(&["ip"]));
    let lab = Lab::with_config();
    let records = || {
        let mut all: Vec<(PathBuf, String)> = fs::read_dir(lab.path("store/subnets"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .chain([lab.path("subnet.env"), lab.path("state/state.json")])
            .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
            .collect();
        all.sort();
        all
    };
    let mut before = None;
    for signal in [Signal::TERM, Signal::INT] {
        let mut service = lab.serve(&[]);
        service.until("READY=1");
        let running = records();
        assert_eq!(running.len(), 4, "two leases, two files: {running:?}");
        service.signal(signal);
        assert_eq!(service.ended(TIMEOUT).code(), Some(0), "{}", service.log());
        service.until("STOPPING=1");
        assert!(!lab.has_device() && !lab.has_route(), "{signal:?}");
        assert_eq!(records(), running, "{signal:?}");
        // The next start has the same subnet and MAC.
        assert_eq!(*before.get_or_insert(running.clone()), running);
    }
}

#[test]
fn a_kept_device_is_removed_by_down_but_never_from_under_a_daemon() {
    need!(possible(&["ip"]));
    let lab = Lab::with_config();
    let down = |status| {
        let output = lab.here(PROGRAM, &["down"]);
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        text(&output.stdout) + &text(&output.stderr)
    };
    assert!(down(0).contains("there is no TUN device flannel.1"));

    let mut service = lab.serve(&["--keep-device"]);
    service.until("READY=1");
    assert!(down(78).contains("another uvxlan daemon serves flannel.1"));
    assert!(lab.has_device() && lab.has_route());
    service.stop();
    assert!(lab.has_device() && lab.has_route(), "kept, with its route");
    assert!(down(0).contains("removed flannel.1"));
    assert!(!lab.has_device() && !lab.has_route());

    // Another program's device is not removed.
    let added = lab.here("ip", &["link", "add", "flannel.1", "type", "bridge"]);
    assert!(added.status.success(), "{added:?}");
    assert!(down(0).contains("there is no TUN device"));
    assert!(lab.has_device());
    let mut service = lab.serve(&[]);
    assert_eq!(service.ended(TIMEOUT).code(), Some(78), "{}", service.log());
    assert!(
        service.log().contains("is of kind bridge"),
        "{}",
        service.log()
    );
    assert!(lab.has_device());
}

/// `flanneld --ip-masq ${FLANNEL_OPTIONS}`: systemd passes that as one argument, with blanks at
/// both ends, and the guide spells `ca-file` where flannel has `cafile`. The server rejects
/// clients without a certificate, so each of the three files must have been recognized.
#[test]
fn the_guides_arguments_reach_an_etcd_with_certificates() {
    need!(possible(&["ip", "etcd", "etcdctl"]));
    let lab = Lab::new();
    let tls = etcd::certificates(lab.folder.path(), true);
    let start = async || etcd::Etcd::start(Some(tls.clone())).await.unwrap();
    let server = lab.host().node().block_on(start).unwrap();
    let [ca, cert, key] = [&tls.ca, &tls.client_cert, &tls.client_key].map(|p| p.to_str().unwrap());
    let ctl = |arguments: &[&str]| {
        let mut all = vec!["--cacert", ca, "--cert", cert, "--key", key];
        all.extend(arguments);
        let ask = || server.ctl(&all).unwrap();
        text(&lab.host().namespace().run(ask).unwrap().stdout)
    };
    ctl(&["put", &format!("{}/config", etcd::PREFIX), CONFIG]);

    let program = lab.path("flanneld");
    std::os::unix::fs::symlink(PROGRAM, &program).unwrap();
    // Two of three members are down.
    let options = format!(
        " --etcd-endpoints=https://192.0.2.2:2379,{},https://127.0.0.1:9 --etcd-ca-file={ca} \
         --etcd-cert-file={cert} --etcd-key-file={key} ",
        server.url()
    );
    let mut service = lab.start(&program, &["--ip-masq", &options]);
    service.until("READY=1");
    let env = fs::read_to_string(lab.path("subnet.env")).unwrap();
    assert!(env.ends_with("FLANNEL_IPMASQ=true\n"), "{env}");
    let leases = ctl(&["get", "--prefix", &format!("{}/subnets/", etcd::PREFIX)]);
    assert!(leases.contains("\"PublicIP\":\"192.0.2.1\""), "{leases}");
    // flannel ignores such an argument, so the log must say that we do not.
    let log = service.log();
    assert!(
        log.contains("split one argument that held several options"),
        "{log}"
    );
    service.stop();

    // Without the certificate the same server rejects us, so the first half proves something.
    let anonymous = format!(" --etcd-endpoints={} --etcd-ca-file={ca} ", server.url());
    let mut service = lab.start(&program, &["--ip-masq", &anonymous, "--fail-fast"]);
    assert_ne!(service.ended(TIMEOUT).code(), Some(0), "{}", service.log());
    assert!(!service.told().contains("READY=1"));
}
