//! A real dockerd on a host of the testbed, with everything it starts.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use uvxlan::testbed::Host;

use crate::support::nodes::{TIMEOUT, eventually};

const BUSYBOX: &str = "/bin/busybox";

/// Gives dockerd its own `/run`, so that the shims' sockets end with the test. The lock of
/// iptables stays the machine's, since dockerd and our daemon change the same tables.
const ENTER: &str = r#"
run=$1; shift
touch /run/xtables.lock "$run/xtables.lock"
mount --bind /run/xtables.lock "$run/xtables.lock"
mount --rbind "$run" /run
exec dockerd "$@"
"#;

/// Why dockerd cannot run here.
pub(crate) fn docker_possible() -> Result<(), String> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if map.split_whitespace().last() != Some("4294967295") {
        return Err("dockerd needs root outside of user namespaces".into());
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    if !mounts.lines().any(|line| line.contains(" cgroup")) {
        return Err("no cgroups are mounted; dockerd needs them".into());
    }
    let busybox = fs::read(BUSYBOX).map_err(|error| format!("{BUSYBOX}: {error}"))?;
    // A dynamically linked program names its loader shortly after its headers.
    let loader = b"/ld-";
    let head = &busybox[..busybox.len().min(4096)];
    if head.windows(loader.len()).any(|bytes| bytes == loader) {
        return Err(format!("{BUSYBOX} is not static; install busybox-static"));
    }
    let unshare = ["--mount", "--pid", "--fork", "--mount-proc", "true"];
    let output = Command::new("unshare").args(unshare).output();
    let output = output.map_err(|error| format!("no program unshare: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("no mount and process namespaces: {said}"));
    }
    Ok(())
}

/// A running dockerd in its own PID and mount namespaces: when its first process is killed, the
/// kernel kills containerd, the shims and the containers, and removes all mounts.
pub(crate) struct Docker {
    child: Child,
    dockerd: u32,
    folder: PathBuf,
    cgroup: String,
}

impl Docker {
    /// Starts dockerd with these options, as `docker.service` does with those of its environment
    /// file, and waits until it answers. The folder's path must be short.
    pub(crate) fn start(host: &Host, folder: &Path, options: &[String]) -> Self {
        let run = folder.join("run");
        fs::create_dir_all(&run).unwrap();
        let log = File::create(folder.join("dockerd.log")).unwrap();
        // As unique as the folder.
        let path = folder.display().to_string();
        let cgroup = format!("uvxlan{}", path.replace('/', "-"));
        // unshare blocks SIGTERM, so that only SIGKILL ends it when the test is killed.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation"])
            .args(["private", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-ec", ENTER, "sh"])
            .arg(&run)
            .args(options)
            .arg("--data-root")
            .arg(folder.join("data"))
            .arg("--exec-root")
            .arg(folder.join("exec"))
            .arg("--pidfile")
            .arg(folder.join("pid"))
            .args(["-H", &format!("unix://{}", folder.join("sock").display())])
            .args(["--storage-driver=vfs", "--cgroup-parent"])
            .arg(format!("/{cgroup}"))
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = host.namespace().command(command).spawn().unwrap();
        let mut this = Self {
            child,
            dockerd: 0,
            folder: folder.to_owned(),
            cgroup,
        };
        this.wait_until_it_answers();
        this
    }

    fn wait_until_it_answers(&mut self) {
        let deadline = Instant::now() + TIMEOUT;
        while self.try_run(&["version"]).is_err() {
            let ended = self.child.try_wait().unwrap();
            let late = Instant::now() > deadline;
            assert!(
                ended.is_none() && !late,
                "dockerd: {ended:?}: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        self.dockerd = self.first_process().unwrap();
    }

    /// The first process of its PID namespace, by its PID outside.
    fn first_process(&self) -> Option<u32> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        children.ok()?.split_whitespace().next()?.parse().ok()
    }

    /// PID of dockerd.
    pub(crate) fn pid(&self) -> u32 {
        self.dockerd
    }

    /// Step 12: the output of `ps`.
    pub(crate) fn command_line(&self) -> Vec<String> {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.dockerd)).unwrap();
        let words = bytes.split(|byte| *byte == 0);
        words
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("dockerd.log")).unwrap_or_default()
    }

    /// The client, with a time limit.
    pub(crate) fn client(&self, words: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["-k", "1", "30", "docker", "-H"])
            .arg(format!("unix://{}", self.folder.join("sock").display()))
            .args(words)
            .env("DOCKER_CONFIG", &self.folder)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn try_run(&self, words: &[&str]) -> Result<String, String> {
        let output = self.client(words).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(text)
        } else {
            Err(format!("docker {words:?}: {output:?}"))
        }
    }

    /// Runs the client; returns its output.
    pub(crate) fn run(&self, words: &[&str]) -> String {
        self.try_run(words).unwrap()
    }

    /// Creates the image `busybox` from the machine's static busybox.
    pub(crate) fn import_busybox(&self) {
        let root = self.folder.join("image");
        let bin = root.join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy(BUSYBOX, bin.join("busybox")).unwrap();
        let list = Command::new(BUSYBOX).arg("--list").output().unwrap();
        for applet in String::from_utf8(list.stdout).unwrap().lines() {
            // The list contains busybox itself.
            let _ = symlink("busybox", bin.join(applet));
        }
        let archive = self.folder.join("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(&archive).arg("-C").arg(&root).arg(".");
        assert!(tar.status().unwrap().success());
        let archive = archive.to_str().unwrap();
        self.run(&["import", "--change", "CMD [\"sh\"]", archive, "busybox"]);
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(20)..].join("\n");
            eprintln!("end of the log of dockerd {}:\n{tail}", self.dockerd);
        }
        let first = self.first_process();
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The first process ends after all others of its namespace.
        let gone = |pid: u32| !Path::new(&format!("/proc/{pid}")).exists();
        let deadline = Instant::now() + TIMEOUT;
        while first.is_some_and(|pid| !gone(pid)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        remove_cgroups(&self.cgroup);
    }
}

/// Removes a cgroup and those below it, in every hierarchy.
fn remove_cgroups(name: &str) {
    let root = PathBuf::from("/sys/fs/cgroup");
    let below = fs::read_dir(&root).into_iter().flatten().flatten();
    let mut places: HashSet<PathBuf> = below
        .filter_map(|entry| fs::canonicalize(entry.path()).ok())
        .collect();
    places.insert(root);
    for place in places {
        remove_cgroup(&place.join(name));
    }
}

fn remove_cgroup(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    // It may not exist.
    let _ = fs::remove_dir(folder);
}

/// A container of the image `busybox`.
pub(crate) struct Container<'a> {
    pub(crate) docker: &'a Docker,
    pub(crate) name: &'a str,
}

impl Container<'_> {
    /// `docker exec`; returns its output.
    pub(crate) fn exec(&self, words: &[&str]) -> String {
        self.docker.run(&self.exec_words(words))
    }

    pub(crate) fn try_exec(&self, words: &[&str]) -> Result<String, String> {
        self.docker.try_run(&self.exec_words(words))
    }

    /// Starts a program, whose standard input stays open until its output is read.
    pub(crate) fn spawn(&self, words: &[&str]) -> Child {
        let mut all = vec!["exec", "-i", self.name];
        all.extend(words);
        let mut command = self.docker.client(&all);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        uvxlan::sys::process::dies_with_parent(command)
            .spawn()
            .unwrap()
    }

    fn exec_words<'b>(&'b self, words: &[&'b str]) -> Vec<&'b str> {
        let mut all = vec!["exec", self.name];
        all.extend(words);
        all
    }

    /// Waits until a process in the container listens on a TCP port.
    pub(crate) fn until_listening(&self, port: u16) {
        let port = format!(":{port} ");
        eventually("the container listens", || {
            self.exec(&["netstat", "-tln"]).contains(&port)
        });
    }

    /// Its PID and start time, which change if it is restarted.
    pub(crate) fn life(&self) -> String {
        let format = "{{.State.Running}} {{.State.Pid}} {{.State.StartedAt}}";
        self.docker.run(&["inspect", "--format", format, self.name])
    }
}
