//! The daemon as a process on a host of the testbed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use rustix::process::{Pid, Signal, kill_process};

use super::host::{Host, UNDERLAY_DEVICE};
use super::namespace::TestbedError;

/// `uvxlan run` in a host's namespace, with all its files in a folder of its own. It is killed
/// when this value is dropped, and when this process dies.
#[derive(Debug)]
pub struct DaemonProcess {
    child: Child,
    host: String,
    folder: PathBuf,
}

/// The subnet file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The leased subnet.
    pub subnet: Ipv4Net,
    /// MTU of the overlay.
    pub mtu: u32,
}

impl DaemonProcess {
    /// Starts `program run` with these arguments, the host's underlay device, and files below
    /// `folder`.
    ///
    /// # Errors
    /// If the folder cannot be created or the program cannot be started.
    pub fn start<'a>(
        program: &Path,
        host: &Host,
        folder: &Path,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, TestbedError> {
        let name = host.node().name().to_owned();
        let failed = |what: &str, source| TestbedError::Io {
            what: what.to_owned(),
            place: name.clone(),
            source,
        };
        fs::create_dir_all(folder).map_err(|error| failed("create the daemon's folder", error))?;
        let log = File::create(folder.join("log"))
            .map_err(|error| failed("create the daemon's log file", error))?;
        let path = |flag: &str, file: &str| format!("--{flag}={}", folder.join(file).display());
        let mut command = Command::new(program);
        command
            .arg("run")
            .args(arguments)
            .arg(format!("--iface={UNDERLAY_DEVICE}"))
            .arg(path("subnet-file", "subnet.env"))
            .arg(path("state-dir", "state"))
            .arg(path("control-socket", "control"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut command = host
            .namespace()
            .command(crate::sys::process::dies_with_parent(command));
        let child = command
            .spawn()
            .map_err(|error| failed("start the daemon", error))?;
        Ok(Self {
            child,
            host: name,
            folder: folder.to_owned(),
        })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Waits until it serves a subnet.
    ///
    /// # Errors
    /// If it ends, or takes longer; with the end of its log.
    pub fn ready(&mut self, timeout: Duration) -> Result<SubnetEnv, TestbedError> {
        let deadline = Instant::now() + timeout;
        loop {
            // The subnet file may be an earlier daemon's.
            if self.is_ready()
                && let Some(found) = self.subnet_env()
            {
                return Ok(found);
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failure(&format!("ended with {status}")));
            }
            if Instant::now() >= deadline {
                return Err(self.failure(&format!("served no subnet within {timeout:?}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Terminates it and waits for the end.
    ///
    /// # Errors
    /// If it does not end in time; it is killed then.
    pub fn terminate(mut self, timeout: Duration) -> Result<ExitStatus, TestbedError> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended already.
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(self.failure(&format!("did not stop within {timeout:?}")))
    }

    /// The folder with its files: `log`, `subnet.env`, `state`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn is_ready(&self) -> bool {
        let log = self.log();
        log.contains("event=\"ready\"") || log.contains("\"event\":\"ready\"")
    }

    fn subnet_env(&self) -> Option<SubnetEnv> {
        let text = fs::read_to_string(self.folder.join("subnet.env")).ok()?;
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        };
        Some(SubnetEnv {
            subnet: value("FLANNEL_SUBNET")?.parse::<Ipv4Net>().ok()?.trunc(),
            mtu: value("FLANNEL_MTU")?.parse().ok()?,
        })
    }

    fn failure(&self, what: &str) -> TestbedError {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        TestbedError::Request(format!(
            "the daemon on {} {what}; its log ends:\n{tail}",
            self.host
        ))
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
