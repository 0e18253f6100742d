//! The daemon as a process: its log, how it ends, and what it leaves behind.

use std::io::Read;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use uvxlan::testbed::{Host, Topology};

use crate::support::need;
use crate::support::nodes::{self, NodeUnderTest, PROGRAM, TIMEOUT, eventually, possible};

const CONFIG: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;

struct Lab {
    topology: Topology,
    folder: tempfile::TempDir,
}

impl Lab {
    fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        std::fs::create_dir(&store).unwrap();
        if !config.is_empty() {
            std::fs::write(store.join("config"), config).unwrap();
        }
        let topology = Topology::two_hosts().unwrap();
        Self { topology, folder }
    }

    fn host(&self) -> &Host {
        &self.topology.hosts()[0]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store_flag(&self) -> String {
        format!("--store=dir:{}", self.path("store").display())
    }

    /// The daemon's command line in the host's namespace, with all its files in the folder.
    fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg(format!(
                "--subnet-file={}",
                self.path("subnet.env").display()
            ))
            .arg(format!("--state-dir={}", self.path("state").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let command = uvxlan::sys::process::dies_with_parent(command);
        self.host().namespace().command(command)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let store = self.store_flag();
        let mut all = vec!["run", &store];
        all.extend(arguments);
        let child = self.command(Path::new(PROGRAM), &all).spawn().unwrap();
        ended(child)
    }

    /// Number of leases in the store.
    fn leases(&self) -> usize {
        std::fs::read_dir(self.path("store/subnets")).map_or(0, Iterator::count)
    }

    fn node(&self, flags: &[&str]) -> NodeUnderTest {
        let mut all = vec![self.store_flag()];
        all.extend(flags.iter().map(ToString::to_string));
        NodeUnderTest::start(self.host(), self.folder.path(), &all)
    }
}

/// Waits for the end; a daemon that keeps running is killed and fails the test.
fn ended(mut child: Child) -> Output {
    let deadline = Instant::now() + TIMEOUT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it did not end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn terminate(child: &Child) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

#[test]
fn a_wrong_command_line_ends_with_2_and_the_nearest_flag() {
    for (argument, expected) in [
        ("--etcd-endpoint=http://x", "--etcd-endpoints"),
        ("--ifcae=eth0", "--iface"),
        ("--workers=0", "from 1 to 256"),
        ("--offload=gso", "read, send, receive and write"),
    ] {
        let output = Command::new(PROGRAM)
            .args(["run", argument])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{argument}");
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
}

#[test]
fn a_config_that_cannot_be_used_is_explained() {
    need!(possible(&[]));
    for (config, status, expected) in [
        (
            r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "ipsec"}}"#,
            78,
            &["ipsec", "vxlan"][..],
        ),
        (
            r#"{"Network": "10.5.0.0/16"}"#,
            78,
            &["udp", "--backend-default"],
        ),
        (r#"{"Network": "10.5.0.0"}"#, 78, &["10.5.0.0"]),
        (
            r#"{"Network": "10.5.0.0/16", "SubnetLen": 31, "Backend": {"Type": "vxlan"}}"#,
            78,
            &["SubnetLen"],
        ),
    ] {
        let lab = Lab::new(config);
        let output = lab.run(&["--iface=eth0"]);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(status), "{config}: {text}");
        for word in expected {
            assert!(text.contains(word), "{word} in: {text}");
        }
        assert!(!lab.path("subnet.env").exists());
    }
}

#[test]
fn a_missing_interface_is_named_with_the_existing_ones() {
    need!(possible(&[]));
    let lab = Lab::new(CONFIG);
    let output = lab.run(&["--iface=eth7"]);
    let text = stderr(&output);
    assert!(!output.status.success());
    assert!(text.contains("eth7") && text.contains("eth0"), "{text}");
}

/// As flannel, which logs it and tries the other options.
#[test]
fn an_invalid_expression_is_ignored() {
    need!(possible(&[]));
    let lab = Lab::new(CONFIG);
    let output = lab.run(&["--iface-regex=(", "--iface-regex=eth7"]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for words in ["no regular expression", "eth7", "this host has"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let store = lab.store_flag();
    let arguments = ["run", &store, "--iface-regex=(", "--iface-regex=^eth0$"];
    let child = lab.command(Path::new(PROGRAM), &arguments).spawn().unwrap();
    eventually("it serves", || lab.path("subnet.env").exists());
    terminate(&child);
    let text = stderr(&ended(child));
    assert!(text.contains("no regular expression"), "{text}");
}

#[test]
fn a_port_in_use_is_named() {
    need!(possible(&[]));
    let lab = Lab::new(CONFIG);
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 8472)).unwrap();
    let _holder = lab.host().namespace().run(bind).unwrap();
    let output = lab.run(&["--iface=eth0"]);
    let text = stderr(&output);
    assert!(!output.status.success());
    assert!(text.contains("8472") && text.contains("in use"), "{text}");
    let holder = format!("(pid {})", std::process::id());
    assert!(text.contains(&holder), "its holder is named: {text}");
    assert_eq!(
        lab.leases(),
        0,
        "a start that cannot succeed leases no subnet"
    );
}

#[test]
fn without_the_capability_nothing_is_changed() {
    need!(possible(&["setpriv"]));
    let lab = Lab::new(CONFIG);
    let store = lab.store_flag();
    let arguments = [
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
        PROGRAM,
        "run",
        &store,
        "--iface=eth0",
    ];
    let output = ended(
        lab.command(Path::new("setpriv"), &arguments)
            .spawn()
            .unwrap(),
    );
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(77), "{text}");
    assert!(text.contains("CAP_NET_ADMIN"), "{text}");
    assert_eq!(lab.leases(), 0);
}

#[test]
fn a_second_daemon_for_one_device_refuses() {
    need!(possible(&[]));
    let lab = Lab::new(CONFIG);
    let first = lab.node(&[]);
    let output = lab.run(&["--iface=eth0"]);
    let text = stderr(&output);
    assert!(!output.status.success());
    assert!(text.contains("another uvxlan daemon"), "{text}");
    let link = first.output("ip", &["link", "show", "flannel.1"]);
    assert!(link.contains("UP"), "the first keeps running: {link}");
}

#[test]
fn without_a_datastore_it_waits_or_says_so() {
    need!(possible(&[]));
    let lab = Lab::new("");
    // Port 9 of the other host: nothing listens there.
    let endpoint = format!(
        "--etcd-endpoints=http://{}:9",
        lab.topology.hosts()[1].address()
    );
    let arguments = ["run", &endpoint, "--iface=eth0", "--fail-fast"];
    let child = lab.command(Path::new(PROGRAM), &arguments).spawn().unwrap();
    let output = ended(child);
    assert_eq!(output.status.code(), Some(69), "{}", stderr(&output));
    assert!(stderr(&output).contains(":9"), "{}", stderr(&output));

    let child = lab
        .command(Path::new(PROGRAM), &arguments[..3])
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    terminate(&child);
    let output = ended(child);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains(":9"), "{}", stderr(&output));
}

#[test]
fn a_config_that_comes_late_is_waited_for() {
    need!(possible(&[]));
    let lab = Lab::new("");
    let store = lab.store_flag();
    let arguments = ["run", &store, "--iface=eth0"];
    let mut child = lab.command(Path::new(PROGRAM), &arguments).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1000));
    assert!(child.try_wait().unwrap().is_none(), "it waits");
    std::fs::write(lab.path("store").join("config"), CONFIG).unwrap();
    eventually("it serves", || lab.path("subnet.env").exists());
    terminate(&child);
    assert_eq!(ended(child).status.code(), Some(0));
}

#[test]
fn ready_comes_after_the_subnet_file() {
    need!(possible(&[]));
    let lab = Lab::new(CONFIG);
    let path = lab.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let store = lab.store_flag();
    let arguments = ["run", &store, "--iface=eth0"];
    let child = lab
        .command(Path::new(PROGRAM), &arguments)
        .env("NOTIFY_SOCKET", &path)
        .spawn()
        .unwrap();
    let mut buffer = [0; 4096];
    let mut seen = String::new();
    while !seen.contains("READY=1") {
        let length = socket.recv(&mut buffer).unwrap();
        let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if message.contains("READY=1") {
            let env = std::fs::read_to_string(lab.path("subnet.env")).unwrap();
            assert!(env.contains("FLANNEL_SUBNET=10.5."), "{env}");
        }
        seen.push_str(&message);
        seen.push('\n');
    }
    terminate(&child);
    let output = ended(child);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    while !seen.contains("STOPPING=1") {
        let length = socket.recv(&mut buffer).unwrap();
        seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
}

#[test]
fn health_is_answered_from_the_start_and_readiness_when_it_serves() {
    need!(possible(&["ip"]));
    let lab = Lab::new("");
    let store = lab.store_flag();
    let arguments = ["run", &store, "--iface=eth0", "--healthz-port=8285"];
    let child = lab.command(Path::new(PROGRAM), &arguments).spawn().unwrap();
    let address = (lab.host().address(), 8285);
    let get = |path: &str| -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let ask = || -> std::io::Result<String> {
            let mut stream = std::net::TcpStream::connect(address)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            std::io::Write::write_all(&mut stream, request.as_bytes())?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        lab.host().namespace().run(ask).unwrap().unwrap_or_default()
    };
    eventually("it is live", || get("/healthz").starts_with("HTTP/1.1 200"));
    assert!(get("/healthz").ends_with("flanneld is running"));
    let not_yet = get("/readyz");
    assert!(
        not_yet.starts_with("HTTP/1.1 503")
            && not_yet.ends_with("\r\n\r\nflanneld is not ready yet"),
        "there is no config yet: {not_yet}"
    );
    std::fs::write(lab.path("store").join("config"), CONFIG).unwrap();
    let is_ready = || get("/readyz").starts_with("HTTP/1.1 200");
    eventually("it is ready", is_ready);
    assert!(get("/readyz").ends_with("\r\n\r\nflanneld is ready"));

    // The device is deleted, and another has its name before it can be recreated.
    let ip = |arguments: &[&str]| {
        let mut command = Command::new("ip");
        command.args(arguments);
        lab.host().namespace().command(command).output().unwrap()
    };
    let pid = rustix::process::Pid::from_child(&child);
    let signal = |signal| rustix::process::kill_process(pid, signal).unwrap();
    signal(rustix::process::Signal::STOP);
    ip(&["link", "del", "flannel.1"]);
    ip(&["link", "add", "flannel.1", "type", "bridge"]);
    signal(rustix::process::Signal::CONT);
    eventually("it is not ready without the device", || {
        get("/readyz").starts_with("HTTP/1.1 503")
    });
    assert!(get("/healthz").starts_with("HTTP/1.1 200"));
    ip(&["link", "del", "flannel.1"]);
    eventually("it is ready again", is_ready);
    terminate(&child);
    assert_eq!(ended(child).status.code(), Some(0));

    let taken = || std::net::TcpListener::bind(address).unwrap();
    let _holder = lab.host().namespace().run(taken).unwrap();
    let output = lab.run(&["--iface=eth0", "--healthz-port=8285"]);
    assert!(!output.status.success());
    assert!(
        stderr(&output).contains("--healthz-port"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn it_is_flanneld_by_name_with_options_in_one_argument() {
    need!(possible(&["etcd", "etcdctl"]));
    let lab = Lab::new("");
    let etcd = nodes::EtcdOnHost::start(&lab.topology.hosts()[1], lab.folder.path());
    etcd.ctl(&["put", &format!("{}/config", nodes::PREFIX), nodes::CONFIG]);
    let program = lab.path("flanneld");
    std::os::unix::fs::symlink(PROGRAM, &program).unwrap();
    // As systemd passes ${FLANNEL_OPTIONS}: one argument, with blanks at both ends, and spellings
    // with an extra hyphen.
    let options = format!(
        " --etcd-endpoints={},http://192.0.2.99:2379 --etcd-ca-file= --etcd-cert-file= \
         --etcd-key-file= ",
        etcd.url()
    );
    let mut child = lab
        .command(&program, &["--ip-masq", &options])
        .spawn()
        .unwrap();
    eventually("it serves", || {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        lab.path("subnet.env").exists()
    });
    let env = std::fs::read_to_string(lab.path("subnet.env")).unwrap();
    assert!(env.contains("FLANNEL_IPMASQ=true"), "{env}");
    assert_eq!(etcd.leases().len(), 1);
    terminate(&child);
    assert_eq!(ended(child).status.code(), Some(0));
}

#[test]
fn a_stop_removes_the_device_unless_it_is_kept() {
    need!(possible(&["ip"]));
    let lab = Lab::new(CONFIG);
    let show = |node: &NodeUnderTest| node.output("ip", &["-o", "link"]);
    let mut node = lab.node(&[]);
    node.stop_daemon();
    assert!(!show(&node).contains("flannel.1"), "the device is removed");
    assert!(
        node.folder.join("subnet.env").exists(),
        "the subnet file stays"
    );

    node.flags.push("--keep-device".into());
    node.start_daemon();
    node.stop_daemon();
    assert!(show(&node).contains("flannel.1"), "the device is kept");
    node.start_daemon();
    assert!(show(&node).contains("flannel.1"), "and reused");
    node.stop_daemon();

    let mut down = Command::new(PROGRAM);
    down.arg("down");
    let output = lab.host().namespace().command(down).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!show(&node).contains("flannel.1"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("removed flannel.1"), "{text}");
}

#[test]
fn the_log_has_all_steps_in_json_too() {
    need!(possible(&[]));
    let lab = Lab::new(CONFIG);
    let mut node = lab.node(&["--log-format=json"]);
    let log = node.stop_daemon();
    let mut events = Vec::new();
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| {
            value
                .get(name)
                .or_else(|| value.get("fields")?.get(name))
                .cloned()
        };
        if let Some(event) = field("event") {
            events.push(event.as_str().unwrap().to_owned());
        }
    }
    for expected in ["interface", "device", "packet_loop"] {
        assert!(
            events.iter().any(|event| event == expected),
            "{expected} in {events:?}"
        );
    }
}

#[test]
fn help_is_complete_and_short_enough_to_read() {
    let mut child = Command::new(PROGRAM)
        .args(["run", "--help"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert!(child.wait().unwrap().success());
    for word in [
        "--etcd-endpoints",
        "--offload",
        "--spin",
        "Examples:",
        "FLANNELD_",
    ] {
        assert!(text.contains(word), "{word}");
    }
}
