//! `uvxlan capture`: readable by tshark, with the reasons of drops, and without any loss in
//! forwarding if its reader stalls.

use std::io::Read;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use uvxlan::testbed::traffic::{PingRequest, ping, udp_echo};

use crate::support::directory::NodePair;
use crate::support::need;
use crate::support::nodes::{NodeUnderTest, PROGRAM, eventually, possible};

type Lab = NodePair;

/// Two nodes without probes, so that only the test's packets are seen.
fn lab() -> Lab {
    NodePair::start(3, &["--probe-interval=0"])
}

impl Lab {
    fn file(&self) -> PathBuf {
        self.store.folder.path().join("capture.pcapng")
    }

    /// The program in host a's namespace.
    fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments);
        let command = uvxlan::sys::process::dies_with_parent(command);
        self.a.host.namespace().command(command)
    }

    /// Starts a capture on host a into the file, and waits until it runs.
    fn begin(&self, arguments: &[&str]) -> Running {
        let file = self.file();
        let _ = std::fs::remove_file(&file);
        let path = file.to_str().unwrap().to_owned();
        let mut all = vec!["capture", "-w", &path];
        all.extend(arguments);
        let mut command = self.program(&all);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        eventually("the capture runs", || {
            std::fs::metadata(&file).is_ok_and(|found| found.len() > 0)
        });
        Running(child)
    }

    /// Starts a capture on host a into a pipe.
    fn begin_piped(&self, arguments: &[&str]) -> Running {
        let mut command = self.program(&["capture"]);
        command.args(arguments);
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(piped.spawn().unwrap())
    }

    /// A datagram to host a's tunnel port, from another host.
    fn datagram(&self, from: usize, payload: &[u8]) {
        let to = (self.a.host.address(), 8472);
        let payload = payload.to_vec();
        let sent = self.topology.hosts()[from].namespace().run(move || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(&payload, to)
        });
        sent.unwrap().unwrap();
    }
}

/// A running capture; killed on drop.
struct Running(Child);

impl Running {
    /// Ends it as Ctrl-C does; returns its output.
    fn interrupt(mut self) -> String {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        self.said()
    }

    fn said(&mut self) -> String {
        let mut said = String::new();
        let mut stderr = self.0.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        assert!(self.0.wait().unwrap().success(), "{said}");
        said
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fields of each packet as tshark reads them, one line per packet.
fn tshark(file: &Path, filter: &str, fields: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command
        .args(["-r", file.to_str().unwrap(), "-d", "udp.port==8472,vxlan"])
        .args(["-Y", filter, "-T", "fields", "-E", "separator=|"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn tshark_reads_both_views_of_a_conversation() {
    need!(possible(&["ip", "tshark"]));
    let lab = lab();
    let (a, b) = (&lab.a, &lab.b);
    let capture = lab.begin(&[]);
    assert!(a.ping(b, 3).is_complete());
    let said = capture.interrupt();
    let file = lab.file();
    assert!(said.contains("12 packets captured, 0 missed"), "{said}");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let outer = tshark(
        &file,
        "frame.interface_name == \"eth0\" && vxlan",
        &["ip.src", "ip.dst", "udp.dstport", "vxlan.vni", "icmp.type"],
    );
    let (from, to) = (a.container().address(), b.container().address());
    let (here, there) = (a.host.address(), b.host.address());
    let request = format!("{here},{from}|{there},{to}|8472|1|8");
    let reply = format!("{there},{to}|{here},{from}|8472|1|0");
    let rounds = [request, reply];
    let expected: Vec<_> = rounds.iter().cycle().take(6).collect();
    assert!(outer.iter().eq(expected), "{outer:#?}, not {rounds:#?}");
    let inner = tshark(
        &file,
        "frame.interface_name == \"flannel.1\"",
        &["ip.src", "ip.dst", "frame.packet_flags_direction"],
    );
    assert_eq!(inner.len(), 6, "{inner:?}");
    // Outbound is 2, inbound 1.
    assert_eq!(inner[0], format!("{from}|{to}|0x00000002"));
    assert_eq!(inner[1], format!("{to}|{from}|0x00000001"));
    let odd = tshark(
        &file,
        "_ws.malformed || ip.checksum.status == 0",
        &["frame.number"],
    );
    assert!(odd.is_empty(), "{odd:?}");
}

#[test]
fn drops_have_reasons_and_unknown_sources_are_seen() {
    need!(possible(&["ip", "tshark"]));
    let lab = lab();
    let capture = lab.begin(&["--dropped"]);
    // No daemon leases that subnet (SubnetMax is below it), but a route leads to the device.
    let nowhere = Ipv4Addr::new(10, 5, 253, 9);
    lab.a
        .change(&["route", "add", "10.5.253.0/24", "dev", "flannel.1"]);
    let from = lab.a.container().namespace();
    let request = PingRequest {
        count: 1,
        timeout: Duration::from_millis(100),
        ..PingRequest::new(nowhere)
    };
    assert!(!ping(from, request).unwrap().is_complete());
    // One from an unknown source, which the kernel drops while no capture runs; and a peer's, too
    // short.
    eventually("packets of unknown sources reach the packet loop", || {
        lab.datagram(2, &[8, 0, 0, 0, 0, 0, 1, 0]);
        std::fs::metadata(lab.file()).unwrap().len() > 0
            && !tshark(
                &lab.file(),
                "frame.comment contains \"in_unknown_peer\"",
                &["ip.src"],
            )
            .is_empty()
    });
    lab.datagram(1, &[8, 0, 0, 0, 0, 0, 1, 0]);
    // Packets that pass are not in it.
    assert!(lab.a.ping(&lab.b, 1).is_complete());
    std::thread::sleep(Duration::from_millis(200));
    let said = capture.interrupt();
    assert!(said.contains(" 0 missed"), "{said}");
    let all = tshark(
        &lab.file(),
        "frame",
        &["frame.interface_name", "ip.src", "frame.comment"],
    );
    let container = lab.a.container().address();
    let unknown = lab.topology.hosts()[2].address();
    let peer = lab.b.host.address();
    for expected in [
        format!("flannel.1|{container}|dropped: out_no_route: No lease covers the destination."),
        format!("eth0|{unknown}|dropped: in_unknown_peer: From an address that has no lease"),
        format!("eth0|{peer}|dropped: in_short: Shorter than VXLAN, Ethernet and IP headers."),
    ] {
        let found = all.iter().any(|line| line.starts_with(&expected));
        assert!(found, "{expected:?} is not in {all:#?}");
    }
    let passed = all.iter().filter(|line| !line.contains("dropped: "));
    assert_eq!(passed.count(), 0, "{all:#?}");
}

#[test]
fn filters_count_and_length_are_kept() {
    need!(possible(&["ip", "tshark"]));
    let lab = lab();
    let (a, b) = (&lab.a, &lab.b);
    let peer = b.host.address().to_string();
    let mut capture = lab.begin(&[
        "--view",
        "outer",
        "--peer",
        &peer,
        "--count",
        "2",
        "--snap-length",
        "60",
    ]);
    assert!(a.ping(b, 3).is_complete());
    let said = capture.said();
    assert!(said.contains("2 packets captured"), "{said}");
    let lengths = tshark(&lab.file(), "frame", &["frame.len", "frame.cap_len"]);
    // 60 bytes of the frame, and the 28 before it; 84 are the ping's.
    assert_eq!(lengths, ["134|88", "134|88"]);

    let subnet = b.env.unwrap().subnet.to_string();
    let capture = lab.begin(&["--view", "inner", "--peer", &subnet, "--host", "192.0.2.99"]);
    assert!(a.ping(b, 1).is_complete());
    let said = capture.interrupt();
    assert!(said.contains("0 packets captured"), "{said}");

    let mut timed = lab.begin(&["--seconds", "1"]);
    assert!(timed.said().contains("packets captured"));

    let refused = |arguments: &[&str]| -> Output {
        let output = lab.program(arguments).output().unwrap();
        assert!(!output.status.success(), "{output:?}");
        output
    };
    let output = refused(&["capture", "--peer", "10.5.253.0/24"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no peer leases 10.5.253.0/24"), "{said}");
}

#[test]
fn only_root_and_the_daemons_user_may_capture() {
    need!(possible(&["ip", "setpriv"]));
    let lab = lab();
    let socket = lab.a.folder.join("control");
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // A member of the socket's group, as far as file permissions go.
    open(&socket, 0o666);
    for folder in socket.ancestors().skip(1).take(2) {
        open(folder, 0o755);
    }
    let program = lab.store.folder.path().join("uvxlan");
    std::fs::copy(PROGRAM, &program).unwrap();
    let run = |command: &str| {
        let mut run = Command::new("setpriv");
        run.args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program)
            .args([command, "--control-socket"])
            .arg(&socket);
        lab.a.host.namespace().command(run).output().unwrap()
    };
    let status = run("status");
    assert!(status.status.success(), "{status:?}");
    let output = run("capture");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("only root and the daemon's own user"),
        "{said}"
    );
}

/// Datagrams from a container to an echo server in the other one and back, with at most `window`
/// in flight, while `go_on` returns true. Returns how many came back.
fn echoes(
    from: &NodeUnderTest,
    to: &NodeUnderTest,
    window: usize,
    mut go_on: impl FnMut(usize) -> bool,
) -> usize {
    let address = to.container().address();
    let server = udp_echo(to.container().namespace(), address).unwrap();
    let bound = from.container().namespace();
    let socket = bound.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    socket.connect(server.address()).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let (payload, mut buffer) = ([7; 1000], [0; 2000]);
    let mut answered = 0;
    while go_on(answered) {
        for _ in 0..window {
            socket.send(&payload).unwrap();
        }
        for _ in 0..window {
            if socket.recv(&mut buffer).is_err() {
                return answered;
            }
            answered += 1;
        }
    }
    answered
}

/// All drops of a node, by name.
fn drops(node: &NodeUnderTest) -> Vec<(String, u64)> {
    let status = node.status();
    let counters = status["counters"].as_array().unwrap().iter();
    counters
        .filter(|counter| {
            counter["kind"].as_str().unwrap().starts_with("drop")
                || counter["name"] == "socket_drops"
        })
        .map(|counter| {
            let name = counter["name"].as_str().unwrap().to_owned();
            (name, counter["value"].as_u64().unwrap())
        })
        .collect()
}

#[test]
fn a_reader_that_sleeps_costs_no_packet() {
    need!(possible(&["ip"]));
    let lab = lab();
    let (a, b) = (&lab.a, &lab.b);
    let before = [drops(a), drops(b)];
    assert!(before[0].len() > 10);
    let mut reader = lab.begin_piped(&[]);
    // Not a byte is read meanwhile: pipe, socket and queue (8192 packets) soon fill up.
    std::thread::sleep(Duration::from_millis(300));
    let answered = echoes(a, b, 32, |answered| answered < 9600);
    assert_eq!(answered, 9600, "a datagram was lost");
    assert!(a.ping(b, 20).is_complete());
    assert_eq!([drops(a), drops(b)], before);
    let mut stdout = reader.0.stdout.take().unwrap();
    let drained = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).unwrap();
        bytes.len()
    });
    let pid = Pid::from_raw(i32::try_from(reader.0.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let said = reader.said();
    let missed: u64 = said
        .split_once("captured, ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{said}"));
    assert!(missed > 0, "the queue should overflow: {said}");
    assert!(drained.join().unwrap() < 32 << 20);
}

/// Waits for a process to end by itself.
fn ends(child: &mut Child, within: Duration) -> Option<i32> {
    let deadline = Instant::now() + within;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    None
}

#[test]
fn a_capture_ends_while_packets_keep_coming_to_a_slow_reader() {
    need!(possible(&["ip"]));
    let lab = lab();
    let mut capture = lab.begin_piped(&["--seconds", "1"]);
    // About 400 kB are read per second, and more is sent as long as the capture runs.
    let mut stdout = capture.0.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut piece = vec![0; 8192];
        while stdout.read(&mut piece).is_ok_and(|read| read > 0) {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let server = udp_echo(lab.b.container().namespace(), lab.b.container().address()).unwrap();
    let bound = lab.a.container().namespace();
    let socket = bound.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    let mut code = None;
    let begun = Instant::now();
    while code.is_none() && begun.elapsed() < Duration::from_secs(40) {
        for _ in 0..64 {
            socket.send_to(&[7; 1000], server.address()).unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
        code = capture.0.try_wait().unwrap().map(|status| status.code());
    }
    assert_eq!(code, Some(Some(0)), "it did not end while packets arrived");
    let said = capture.said();
    assert!(said.contains("packets captured"), "{said}");
    reader.join().unwrap();
}

#[test]
fn a_second_interrupt_ends_a_capture_that_nobody_reads() {
    need!(possible(&["ip"]));
    let lab = lab();
    let mut capture = lab.begin_piped(&[]);
    std::thread::sleep(Duration::from_millis(300));
    echoes(&lab.a, &lab.b, 64, |answered| answered < 3200);
    let pid = Pid::from_raw(i32::try_from(capture.0.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(
        ends(&mut capture.0, Duration::from_secs(1)),
        None,
        "the reader may still read what is left"
    );
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(ends(&mut capture.0, Duration::from_secs(5)), Some(130));
}
