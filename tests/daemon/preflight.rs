//! A start checks its requirements before it changes anything, and reports all that are missing
//! at once.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use uvxlan::testbed::{Host, Topology, kernel_has_vxlan};

use crate::support::need;
use crate::support::nodes::{PROGRAM, TIMEOUT, eventually, possible};

const CONFIG: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
const PORT: u16 = 8472;
/// A PATH without programs.
const NO_PATH: &str = "/nonexistent";
const NO_TUN: &str = "mount -t tmpfs none /dev/net";
const READ_ONLY_SYSCTLS: &str =
    "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys";

struct Lab {
    topology: Topology,
    folder: tempfile::TempDir,
}

/// How the start of a daemon ended, or that it serves.
struct Start {
    status: Option<i32>,
    log: String,
}

impl Start {
    /// What was logged about this before a subnet was leased.
    fn assert_said_first(&self, words: &str) {
        let said = self.log.find(words);
        assert!(said.is_some(), "{words}: {}", self.log);
        let leased = self.log.find("Allocated lease");
        assert!(leased.is_none() || said < leased, "{words}: {}", self.log);
    }
}

impl Lab {
    fn new() -> Self {
        let topology = Topology::two_hosts().unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("store")).unwrap();
        fs::write(folder.path().join("store/config"), CONFIG).unwrap();
        Self { topology, folder }
    }

    fn host(&self) -> &Host {
        &self.topology.hosts()[0]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the daemon in its own mount namespace, changed by shell commands, and waits until it
    /// serves or ends. If it serves, it is stopped.
    fn start(&self, changes: &[&str], search_path: Option<&str>) -> Start {
        let changes = [changes, &["true"]].concat().join(" && ");
        let search_path = search_path.map_or(String::new(), |path| format!("PATH={path}; "));
        let script = format!("{{ {changes}; }} || exit 99; {search_path}exec \"$@\"");
        let log = self.path("log");
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                &script,
                "sh",
            ])
            .args([PROGRAM, "run", "--iface=eth0", "--ip-masq"])
            .arg(format!("--store=dir:{}", self.path("store").display()))
            .arg(format!(
                "--subnet-file={}",
                self.path("run/subnet.env").display()
            ))
            .arg(format!("--state-dir={}", self.path("state").display()))
            .arg(format!(
                "--control-socket={}",
                self.path("control").display()
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap());
        let command = uvxlan::sys::process::dies_with_parent(command);
        let mut child = self.host().namespace().command(command).spawn().unwrap();
        let status = self.until_serving(&mut child);
        assert_ne!(status, Some(99), "the test's own changes failed");
        let log = fs::read_to_string(&log).unwrap();
        Start { status, log }
    }

    fn until_serving(&self, child: &mut Child) -> Option<i32> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return Some(status.code().unwrap());
            }
            let log = fs::read_to_string(self.path("log")).unwrap();
            let serves = log.contains("event=\"ready\"");
            if serves || Instant::now() > deadline {
                let pid = i32::try_from(child.id()).unwrap();
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
                child.wait().unwrap();
                assert!(serves, "neither serves nor ends: {log}");
                return None;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn shell(&self, line: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        let output = self.host().namespace().command(command).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Asserts that device, routes, rules, lease and files are untouched.
    fn assert_untouched(&self, start: &Start) {
        let seen = self.shell(
            "ip -o link; ip route; sysctl net.ipv4.ip_forward; \
             iptables-save; nft list tables",
        );
        for trace in ["flannel", "FLANNEL", "10.5."] {
            assert!(!seen.contains(trace), "{trace}: {seen}\n{}", start.log);
        }
        let leases = fs::read_dir(self.path("store/subnets")).map_or(0, Iterator::count);
        assert_eq!(leases, 0, "{}", start.log);
        for name in ["run/subnet.env", "state/state.json"] {
            assert!(!self.path(name).exists(), "{name}");
        }
    }
}

fn tools() -> Result<(), String> {
    possible(&["ip", "iptables", "nft", "unshare"])
}

#[test]
fn without_the_tun_driver_nothing_is_changed() {
    need!(tools());
    let lab = Lab::new();
    let start = lab.start(&[NO_TUN], None);
    assert_eq!(start.status, Some(71), "{}", start.log);
    start.assert_said_first("modprobe tun");
    lab.assert_untouched(&start);
}

#[test]
fn a_folder_that_cannot_be_written_is_named_with_its_flag() {
    need!(tools());
    for (name, flag) in [("state", "--state-dir"), ("run", "--subnet-file")] {
        let lab = Lab::new();
        let folder = lab.path(name);
        fs::create_dir(&folder).unwrap();
        let read_only = format!("mount -t tmpfs -o ro none {}", folder.display());
        let start = lab.start(&[&read_only], None);
        assert_eq!(start.status, Some(73), "{}", start.log);
        start.assert_said_first(flag);
        start.assert_said_first("Read-only file system");
        lab.assert_untouched(&start);

        // A file where the folder should be.
        fs::remove_dir(&folder).unwrap();
        fs::write(&folder, "").unwrap();
        let start = lab.start(&[], None);
        assert_eq!(start.status, Some(73), "{}", start.log);
        start.assert_said_first(folder.to_str().unwrap());
        lab.assert_untouched(&start);

        // A missing folder is created.
        fs::remove_file(&folder).unwrap();
        let start = lab.start(&[], None);
        assert_eq!(start.status, None, "{}", start.log);
    }
}

#[test]
fn a_missing_optional_requirement_is_named_and_the_start_continues() {
    need!(tools());
    let lab = Lab::new();
    let start = lab.start(&[], Some(NO_PATH));
    assert_eq!(start.status, None, "{}", start.log);
    start.assert_said_first("install the package iptables");
    start.assert_said_first("install the package nftables");

    let lab = Lab::new();
    lab.shell("sysctl -qw net.ipv4.ip_forward=0");
    let start = lab.start(&[READ_ONLY_SYSCTLS], None);
    assert_eq!(start.status, None, "{}", start.log);
    start.assert_said_first("sysctl -w net.ipv4.ip_forward=1");
    assert_eq!(lab.shell("sysctl -n net.ipv4.ip_forward"), "0\n");

    // If it is writable, it is switched on.
    let start = lab.start(&[], None);
    assert_eq!(start.status, None, "{}", start.log);
    assert!(
        !start.log.contains("cannot be switched on"),
        "{}",
        start.log
    );
    assert_eq!(lab.shell("sysctl -n net.ipv4.ip_forward"), "1\n");
}

#[test]
fn bridges_without_netfilter_are_a_warning() {
    need!(tools());
    let lab = Lab::new();
    let folder = "/proc/sys/net/bridge";
    let hidden = format!("{{ [ ! -d {folder} ] || mount -t tmpfs none {folder}; }}");
    let start = lab.start(&[&hidden], None);
    assert_eq!(start.status, None, "{}", start.log);
    start.assert_said_first("modprobe br_netfilter");
    if !std::path::Path::new(folder).exists() {
        return crate::support::skipped("no br_netfilter in this kernel");
    }
    lab.shell("sysctl -qw net.bridge.bridge-nf-call-iptables=0");
    let start = lab.start(&[], None);
    assert_eq!(start.status, None, "{}", start.log);
    start.assert_said_first("sysctl -w net.bridge.bridge-nf-call-iptables=1");
    lab.shell("sysctl -qw net.bridge.bridge-nf-call-iptables=1");
    let start = lab.start(&[], None);
    assert!(!start.log.contains("br_netfilter"), "{}", start.log);
}

#[test]
fn all_missing_requirements_are_reported_at_once() {
    need!(tools());
    let lab = Lab::new();
    lab.shell("sysctl -qw net.ipv4.ip_forward=0");
    for name in ["state", "run"] {
        fs::write(lab.path(name), "").unwrap();
    }
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
    let _holder = lab.host().namespace().run(bind).unwrap();
    let start = lab.start(&[NO_TUN, READ_ONLY_SYSCTLS], Some(NO_PATH));
    assert_eq!(start.status, Some(71), "{}", start.log);
    for words in [
        "install the package iptables",
        "sysctl -w net.ipv4.ip_forward=1",
        "modprobe tun",
        "UDP port 8472 is in use",
        "--state-dir",
        "--subnet-file",
        "4 requirements are missing",
    ] {
        start.assert_said_first(words);
    }
    lab.assert_untouched(&start);
}

fn is_without_ipv6(error: &std::io::Error) -> bool {
    let code = error.raw_os_error();
    [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL]
        .map(Some)
        .contains(&code)
}

#[test]
fn a_port_of_both_families_is_named_and_one_of_ipv6_alone_is_free() {
    need!(tools());
    let lab = Lab::new();
    let bind = || UdpSocket::bind(("::", PORT));
    let holder = match lab.host().namespace().run(bind).unwrap() {
        Ok(holder) => holder,
        Err(error) if is_without_ipv6(&error) => {
            return crate::support::skipped(format!("no IPv6 here: {error}"));
        }
        Err(error) => panic!("{error}"),
    };
    let start = lab.start(&[], None);
    assert_eq!(start.status, Some(1), "{}", start.log);
    start.assert_said_first(&format!("(pid {})", std::process::id()));
    lab.assert_untouched(&start);
    drop(holder);

    let alone = lab.host().namespace().run(|| {
        use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
        let socket = socket(AddressFamily::INET6, SocketType::DGRAM, None).unwrap();
        sockopt::set_ipv6_v6only(&socket, true).unwrap();
        let any: std::net::SocketAddr = format!("[::]:{PORT}").parse().unwrap();
        // A child that another test is just starting still has a copy of the holder's socket.
        eventually("the port is free", || bind(&socket, &any).is_ok());
        socket
    });
    let start = lab.start(&[], None);
    assert_eq!(start.status, None, "{}", start.log);
    drop(alone.unwrap());
}

#[test]
fn a_kernel_device_excuses_its_own_port_and_no_other() {
    need!(tools());
    need!(kernel_has_vxlan());
    let lab = Lab::new();
    let make = |name: &str, id: u32, port: u16| {
        lab.shell(&format!(
            "ip link add {name} type vxlan id {id} dev eth0 local {} dstport {port} nolearning \
             && ip link set {name} up",
            lab.host().address()
        ));
    };
    let devices = || lab.shell("ip -o link show type vxlan");

    // flannel's own device, on another port: ours is taken by another program.
    make("flannel.1", 1, 4789);
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
    let holder = lab.host().namespace().run(bind).unwrap();
    let start = lab.start(&[], None);
    assert_eq!(start.status, Some(1), "{}", start.log);
    start.assert_said_first(&format!("(pid {})", std::process::id()));
    assert!(
        devices().contains("flannel.1"),
        "left unchanged: {}",
        devices()
    );
    drop(holder);

    // Another kernel vxlan device on our port.
    make("vxlan42", 42, PORT);
    let start = lab.start(&[], None);
    assert_eq!(start.status, Some(1), "{}", start.log);
    start.assert_said_first("the kernel's vxlan device vxlan42");
    assert!(
        devices().contains("flannel.1"),
        "left unchanged: {}",
        devices()
    );

    lab.shell("ip link del vxlan42; ip link del flannel.1");
    make("flannel.1", 1, PORT);
    let start = lab.start(&[], None);
    assert_eq!(start.status, None, "taken over: {}", start.log);
    eventually("it is gone", || devices().is_empty());
}
