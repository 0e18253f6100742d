//! `flanneld.service` and `docker.service` of the guide, as systemd runs them.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use uvxlan::testbed::Host;

use crate::docker::Docker;
use crate::store::Store;

use crate::support::nodes::{PROGRAM, TIMEOUT};

/// The value of a name in an `EnvironmentFile=` of systemd: the text between double quotes, or the
/// rest of the line, with lines that end with a backslash joined.
pub(crate) fn environment_value(text: &str, name: &str) -> Option<String> {
    let text = text.replace("\\\n", "");
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    let quoted = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    Some(quoted.unwrap_or(value).to_owned())
}

/// A node of the guide: the files of steps 6 to 9 in a folder, and the running services.
pub(crate) struct SeedNode {
    pub(crate) host: Host,
    pub(crate) folder: PathBuf,
    docker: Option<Docker>,
    daemon: Option<Child>,
    /// The service manager's socket, open as long as the service runs.
    notify: Option<UnixDatagram>,
}

impl SeedNode {
    /// Steps 6 and 7: the two programs in `bin`, the options in `flanneld`.
    pub(crate) fn install(host: &Host, folder: &Path, store: &Store) -> Self {
        let bin = folder.join("bin");
        fs::create_dir_all(&bin).unwrap();
        symlink(PROGRAM, bin.join("flanneld")).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/mk-docker-opts.sh");
        fs::copy(script, bin.join("mk-docker-opts.sh")).unwrap();
        let options = format!(
            "FLANNEL_OPTIONS=\" --etcd-endpoints={} \\\n--etcd-ca-file={ssl}/ca.pem \\\n\
             --etcd-cert-file={ssl}/server.pem \\\n--etcd-key-file={ssl}/server-key.pem \"\n",
            store.endpoints(),
            ssl = store.ssl().display(),
        );
        fs::write(folder.join("flanneld"), options).unwrap();
        Self {
            host: host.clone(),
            folder: folder.to_owned(),
            docker: None,
            daemon: None,
            notify: None,
        }
    }

    pub(crate) fn subnet_file(&self) -> PathBuf {
        self.folder.join("subnet.env")
    }

    /// `systemctl start flanneld`: the daemon and, once it is READY, its `ExecStartPost=`, which
    /// overwrites the subnet file.
    pub(crate) fn start_flanneld(&mut self) {
        let notify = self.folder.join("notify");
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).unwrap();
        let words = self.command_line("ExecStart");
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("NOTIFY_SOCKET", &notify)
            // The guide has a machine for each node; these separate two nodes on one.
            .env("FLANNELD_SUBNET_FILE", self.subnet_file())
            .env("UVXLAN_STATE_DIR", self.folder.join("state"))
            .env("UVXLAN_CONTROL_SOCKET", self.folder.join("control"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.folder.join("flanneld.log")).unwrap());
        let command = uvxlan::sys::process::dies_with_parent(command);
        self.daemon = Some(self.host.namespace().command(command).spawn().unwrap());
        self.until_ready(&socket);
        self.notify = Some(socket);
        self.make_docker_options();
    }

    fn until_ready(&mut self, socket: &UnixDatagram) {
        let step = Duration::from_millis(200);
        socket.set_read_timeout(Some(step)).unwrap();
        let deadline = Instant::now() + TIMEOUT;
        let mut buffer = [0; 4096];
        loop {
            let length = socket.recv(&mut buffer).unwrap_or(0);
            if String::from_utf8_lossy(&buffer[..length]).contains("READY=1") {
                return;
            }
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            let late = Instant::now() > deadline;
            assert!(ended.is_none() && !late, "{ended:?}: {}", self.log());
        }
    }

    /// A command of the shipped unit as systemd splits it (systemd.service(5)), with the paths of
    /// this node: a variable in braces is one argument with its blanks, one without braces is split
    /// into words.
    fn command_line(&self, key: &str) -> Vec<String> {
        let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/flanneld.service");
        let unit = fs::read_to_string(unit).unwrap();
        let at = |name: &str| self.folder.join(name).display().to_string();
        let unit = unit
            .replace("/opt/kubernetes/bin/", &at("bin/"))
            .replace("/opt/kubernetes/config/", &at(""))
            .replace("/run/flannel/subnet.env", &at("subnet.env"));
        let value = |key: &str| {
            let line = unit
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("no {key} in {unit}"))
                .to_owned()
        };
        let file = value("EnvironmentFile");
        let file = fs::read_to_string(file.trim_start_matches('-')).unwrap();
        let variable = |name: &str| environment_value(&file, name).unwrap_or_default();
        let mut words = Vec::new();
        for word in value(key).split(' ') {
            let braced = word
                .strip_prefix("${")
                .and_then(|rest| rest.strip_suffix('}'));
            match (braced, word.strip_prefix('$')) {
                (Some(name), _) => words.push(variable(name)),
                (None, Some(name)) => {
                    words.extend(variable(name).split_whitespace().map(str::to_owned));
                }
                (None, None) => words.push(word.to_owned()),
            }
        }
        words
    }

    fn make_docker_options(&self) {
        let words = self.command_line("ExecStartPost");
        let mut command = Command::new(&words[0]);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .args(&words[1..])
            // Two nodes on one machine would share the default path.
            .arg("-f")
            .arg(self.subnet_file());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// `systemctl stop flanneld`.
    pub(crate) fn stop_flanneld(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        let pid = Pid::from_raw(i32::try_from(daemon.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = daemon.try_wait().unwrap() {
                assert!(status.success(), "{status}: {}", self.log());
                return;
            }
            if Instant::now() > deadline {
                let _ = daemon.kill();
                panic!("runs {TIMEOUT:?} after SIGTERM: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `$DOCKER_NETWORK_OPTIONS`, without braces, in dockerd's command line: split into words.
    pub(crate) fn docker_options(&self) -> Vec<String> {
        let text = fs::read_to_string(self.subnet_file()).unwrap();
        let value = environment_value(&text, "DOCKER_NETWORK_OPTIONS");
        let value = value.unwrap_or_else(|| panic!("no options in {text}"));
        value.split_whitespace().map(str::to_owned).collect()
    }

    /// Step 10: `systemctl restart docker`.
    pub(crate) fn start_docker(&mut self) {
        self.docker = Some(Docker::start(
            &self.host,
            &self.folder,
            &self.docker_options(),
        ));
    }

    pub(crate) fn docker(&self) -> &Docker {
        self.docker.as_ref().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("flanneld.log")).unwrap_or_default()
    }

    /// Runs a program in the host's namespace; returns its output.
    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(arguments);
        let output = self.host.namespace().command(command).output().unwrap();
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {output:?}"
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for SeedNode {
    fn drop(&mut self) {
        self.docker = None;
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(20)..].join("\n");
            eprintln!("end of the log of {}:\n{tail}", self.host.node().name());
        }
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
