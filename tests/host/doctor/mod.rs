//! `uvxlan doctor`: each fault is injected on a real host, found by name, and no longer found once
//! it is repaired.

mod datastore;
mod host;
mod kernel_peer;
mod peers;
mod report;

use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use uvxlan::testbed::DaemonProcess;

use crate::support::directory::NodePair;
use crate::support::nodes::{self, NodeUnderTest, PROGRAM};

type Lab = NodePair;

fn lab() -> Lab {
    NodePair::start(2, &["--probe-interval=1"])
}

impl Lab {
    /// The doctor's report on node `a`.
    fn examine(&self) -> Findings {
        self.examine_with(&[])
    }

    fn examine_with(&self, flags: &[&str]) -> Findings {
        let store = self.store.flag();
        let mut arguments = vec![store.as_str()];
        arguments.extend(flags);
        examine(&self.a, &arguments)
    }

    /// Runs shell commands on a node, with its facts in the environment.
    fn shell(&self, on: &NodeUnderTest, script: &str) {
        let other = if on.host.address() == self.a.host.address() {
            &self.b
        } else {
            &self.a
        };
        let (own, peer) = (on.env.unwrap().subnet, other.env.unwrap().subnet);
        let mut command = Command::new("sh");
        command
            .args(["-ec", script])
            .env("SUBNET", own.to_string())
            .env("PEER", peer.to_string())
            .env("PEER_NET", peer.network().to_string())
            .env("OWN_IP", on.host.address().to_string())
            .env("PEER_IP", other.host.address().to_string())
            .env("STORE", self.store.path())
            .env("LEASE", self.store.lease(on))
            .env("FOLDER", &on.folder);
        let output = on.host.namespace().command(command).output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
    }
}

/// A report of the doctor.
#[derive(Debug)]
struct Findings {
    findings: Vec<Value>,
    success: bool,
}

impl Findings {
    fn of(output: &Output) -> Self {
        let parsed = serde_json::from_slice(&output.stdout);
        Self {
            findings: parsed.unwrap_or_else(|error| panic!("{error}: {output:?}")),
            success: output.status.success(),
        }
    }

    /// Warnings and errors, as `check: status`.
    fn bad(&self) -> Vec<String> {
        let bad = self
            .findings
            .iter()
            .filter(|finding| ["warning", "error"].contains(&finding["status"].as_str().unwrap()));
        bad.map(|finding| finding.to_string()).collect()
    }

    fn get(&self, check: &str) -> &Value {
        let found = self
            .findings
            .iter()
            .find(|finding| finding["check"] == check);
        found.unwrap_or_else(|| panic!("no check {check}: {self:?}"))
    }

    /// Asserts that a check has a finding with this status and these words, that it gives a reason
    /// and a remedy, and that the exit status matches.
    fn expect(&self, check: &str, status: &str, word: &str) {
        let finding = self.get(check);
        assert_eq!(finding["status"], status, "{check}: {self:#?}");
        let seen = finding["seen"].as_str().unwrap();
        assert!(
            seen.contains(word),
            "{check}: {word:?} is not in {finding:#}"
        );
        for part in ["cause", "fix"] {
            let text = finding[part].as_str().unwrap();
            assert!(!text.is_empty(), "{check}: no {part}: {finding:#}");
        }
        assert!(
            !self.success,
            "{check} is a finding, but the exit status is 0"
        );
    }
}

/// The command that runs the doctor on a node, with the paths of its daemon.
fn doctor(node: &NodeUnderTest, flags: &[&str]) -> Vec<String> {
    let path = |flag: &str, file: &str| format!("--{flag}={}", node.folder.join(file).display());
    let mut arguments = vec![
        "doctor".to_owned(),
        "--json".to_owned(),
        path("subnet-file", "subnet.env"),
        path("state-dir", "state"),
        path("control-socket", "control"),
    ];
    arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
    arguments
}

fn examine(node: &NodeUnderTest, flags: &[&str]) -> Findings {
    let mut command = Command::new(PROGRAM);
    command.args(doctor(node, flags));
    Findings::of(&node.host.namespace().command(command).output().unwrap())
}

fn signal(daemon: &DaemonProcess, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Stops a daemon's process, which would repair the fault at once; continues it on drop.
struct Paused<'a>(&'a DaemonProcess);

impl<'a> Paused<'a> {
    fn new(node: &'a NodeUnderTest) -> Self {
        let daemon = node.daemon.as_ref().unwrap();
        signal(daemon, Signal::STOP);
        Self(daemon)
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        signal(self.0, Signal::CONT);
    }
}

/// Waits until the doctor has no findings.
fn until_healthy(what: &str, mut look: impl FnMut() -> Findings) {
    let mut last = Vec::new();
    let deadline = std::time::Instant::now() + nodes::TIMEOUT;
    while std::time::Instant::now() < deadline {
        last = look().bad();
        if last.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    panic!("{what}: still found {last:#?}");
}
