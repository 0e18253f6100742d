//! The systemd units: accepted by `systemd-analyze verify`, and related to Docker and the daemon as
//! documented.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_uvxlan");
const INSTALLED: &str = "/usr/local/sbin/uvxlan";

fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("systemd")
        .join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn unit() -> String {
    shipped("uvxlan.service")
}

/// The tutorials' unit.
fn flanneld() -> String {
    shipped("flanneld.service")
}

fn drop_in() -> String {
    shipped("docker.service.d/uvxlan.conf")
}

/// Skips the test, with the reason, without systemd-analyze.
macro_rules! need_systemd_analyze {
    () => {
        if let Err(error) = Command::new("systemd-analyze").arg("--version").output() {
            crate::support::skipped(format!("no systemd-analyze program: {error}"));
            return;
        }
    };
}

/// A self-contained folder of units: programs are added, and units that ours only mention are
/// missing.
struct Units {
    folder: tempfile::TempDir,
}

impl Units {
    fn new(unit: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("uvxlan");
        symlink(PROGRAM, &program).unwrap();
        let this = Self { folder };
        this.put(
            "uvxlan.service",
            &unit.replace(INSTALLED, program.to_str().unwrap()),
        );
        this
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// A docker.service like Docker's own, and our drop-in for it.
    fn with_docker(self, drop_in: &str) -> Self {
        let dockerd = self.put("dockerd", "#!/bin/sh\n");
        fs::set_permissions(&dockerd, fs::Permissions::from_mode(0o755)).unwrap();
        let dockerd = dockerd.to_str().unwrap();
        self.put(
            "docker.service",
            &format!("[Service]\nType=notify\nExecStart={dockerd} -H fd://\n"),
        );
        let drop_in = drop_in.replace("/usr/bin/dockerd", dockerd);
        self.put("docker.service.d/uvxlan.conf", &drop_in);
        self
    }

    /// systemd's complaints about a unit.
    fn verify(&self, unit: &str) -> String {
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(self.folder.path().join(unit))
            // First the test's folder, then (the empty end) systemd's own paths.
            .env(
                "SYSTEMD_UNIT_PATH",
                format!("{}:", self.folder.path().display()),
            )
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // Other units of this machine may have errors of their own.
        let ours: Vec<&str> = said
            .lines()
            .filter(|line| {
                line.contains("uvxlan") || line.contains("docker") || line.contains("flannel")
            })
            .collect();
        if ours.is_empty() {
            assert!(output.status.success(), "{output:?}");
        }
        ours.join("\n")
    }
}

#[test]
fn systemd_accepts_the_unit() {
    need_systemd_analyze!();
    assert_eq!(Units::new(&unit()).verify("uvxlan.service"), "");
}

#[test]
fn systemd_accepts_the_tutorials_unit() {
    need_systemd_analyze!();
    let units = Units::new(&unit());
    let program = units.folder.path().join("uvxlan");
    let program = program.to_str().unwrap();
    let text = flanneld()
        .replace("/opt/kubernetes/bin/flanneld", program)
        .replace("/opt/kubernetes/bin/mk-docker-opts.sh", program);
    units.put("flanneld.service", &text);
    assert_eq!(units.verify("flanneld.service"), "");
    let mistyped = text.replace("StartLimitIntervalSec=", "StartLimitIntervalsSec=");
    assert_ne!(mistyped, text);
    units.put("flanneld.service", &mistyped);
    assert_ne!(units.verify("flanneld.service"), "");
}

/// Failures in quick succession must not be final: the store or the interface may come up later.
#[test]
fn systemd_never_gives_up_starting() {
    for text in [unit(), flanneld()] {
        assert_eq!(words(&text, "Service", "Restart"), ["always"]);
        assert_eq!(words(&text, "Unit", "StartLimitIntervalSec"), ["0"]);
    }
}

#[test]
fn the_tutorials_unit_hands_its_options_over_as_the_tutorials_do() {
    let exec = words(&flanneld(), "Service", "ExecStart");
    assert_eq!(exec[1..], ["--ip-masq", "${FLANNEL_OPTIONS}"]);
}

#[test]
fn network_managers_leave_the_device_alone() {
    let link = shipped("50-flannel.link");
    assert_eq!(words(&link, "Link", "MACAddressPolicy"), ["none"]);
    let network = shipped("50-flannel.network");
    assert_eq!(words(&network, "Link", "Unmanaged"), ["yes"]);
    // `=` would override what other files of the host name; `+=` adds.
    let manager = shipped("uvxlan-networkmanager.conf");
    assert_eq!(
        words(&manager, "keyfile", "unmanaged-devices+"),
        ["interface-name:flannel*"]
    );
}

#[test]
fn systemd_accepts_the_drop_in() {
    need_systemd_analyze!();
    let units = Units::new(&unit()).with_docker(&drop_in());
    assert_eq!(units.verify("docker.service"), "");
}

/// Without this, the two tests above could pass because nothing is checked.
#[test]
fn systemd_does_not_accept_everything() {
    need_systemd_analyze!();
    let mistyped = unit().replace("LimitNOFILE=", "LimitNOFILES=");
    assert_ne!(mistyped, unit());
    let said = Units::new(&mistyped).verify("uvxlan.service");
    assert!(said.contains("LimitNOFILES"), "{said:?}");

    let mistyped = drop_in().replace("EnvironmentFile=", "EnvironmentFiles=");
    assert_ne!(mistyped, drop_in());
    let said = Units::new(&unit())
        .with_docker(&mistyped)
        .verify("docker.service");
    assert!(said.contains("EnvironmentFiles"), "{said:?}");
}

/// Assignments of a unit file in order: section, key, value.
fn assignments(text: &str) -> Vec<(String, String, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if !line.is_empty() && !line.starts_with(['#', ';']) {
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
            found.push((section.clone(), key.to_owned(), value.to_owned()));
        }
    }
    found
}

/// All words of all assignments of a key.
fn words(text: &str, section: &str, key: &str) -> Vec<String> {
    assignments(text)
        .into_iter()
        .filter(|(s, k, _)| s == section && k == key)
        .flat_map(|(_, _, value)| {
            let words = value.split_whitespace().map(str::to_owned);
            words.collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn a_restart_of_either_does_not_stop_the_other() {
    let ties = ["Requires", "Requisite", "BindsTo", "PartOf", "RequiredBy"];
    for text in [unit(), flanneld(), drop_in()] {
        for (section, key, value) in assignments(&text) {
            assert!(
                !ties.contains(&key.as_str()),
                "[{section}] {key}={value} propagates a stop"
            );
        }
    }
    // The order is kept, and that Docker starts the daemon.
    let before = words(&unit(), "Unit", "Before");
    assert!(before.contains(&"docker.service".to_owned()), "{before:?}");
    for key in ["After", "Wants"] {
        assert_eq!(words(&drop_in(), "Unit", key), ["uvxlan.service"], "{key}");
    }
}

#[test]
fn docker_reads_the_file_that_the_unit_writes() {
    let unit = unit();
    let drop_in = drop_in();
    let post = words(&unit, "Service", "ExecStartPost");
    let behind = |flag: &str| {
        let at = post.iter().position(|word| word == flag);
        at.and_then(|at| post.get(at + 1))
            .unwrap_or_else(|| panic!("no {flag} in {post:?}"))
    };
    assert_eq!(post[..2], [INSTALLED, "docker-opts"]);
    assert_eq!(
        words(&drop_in, "Service", "EnvironmentFile"),
        [behind("-d").as_str()]
    );
    // The first, empty assignment removes Docker's own command; otherwise it would have two.
    let exec: Vec<String> = assignments(&drop_in)
        .into_iter()
        .filter(|(_, key, _)| key == "ExecStart")
        .map(|(_, _, value)| value)
        .collect();
    assert_eq!(
        exec,
        [String::new(), format!("/usr/bin/dockerd ${}", behind("-k"))]
    );
    // The subnet file itself must stay readable for the daemon and CNI plugins.
    assert_ne!(behind("-d"), "/run/flannel/subnet.env");
}

/// The sandbox must leave the paths writable that the daemon writes.
#[test]
fn the_unit_may_write_what_it_must_and_no_more_of_run() {
    let unit = unit();
    assert_eq!(words(&unit, "Service", "ProtectSystem"), ["strict"]);
    assert_eq!(
        words(&unit, "Service", "RuntimeDirectory"),
        ["flannel", "uvxlan"]
    );
    let writable = words(&unit, "Service", "ReadWritePaths");
    assert_eq!(writable, ["-/run/xtables.lock"]);
    // A path that does not exist yet cannot be made writable.
    let before = words(&unit, "Service", "ExecStartPre");
    assert_eq!(before, ["-+/bin/touch", "/run/xtables.lock"]);
}

#[test]
fn docker_waits_until_the_subnet_file_is_there() {
    let unit = unit();
    assert_eq!(words(&unit, "Service", "Type"), ["notify"]);
    // The datastore may come up much later than this node.
    assert_eq!(words(&unit, "Service", "TimeoutStartSec"), ["infinity"]);
    assert_eq!(words(&unit, "Service", "Restart"), ["always"]);
    // Otherwise Docker would lose its EnvironmentFile at every restart.
    assert_eq!(words(&unit, "Service", "RuntimeDirectoryPreserve"), ["yes"]);
}

#[test]
fn the_commands_of_the_unit_are_understood() {
    let exec = words(&unit(), "Service", "ExecStart");
    assert_eq!(exec, [INSTALLED, "run", "$FLANNEL_OPTIONS"]);
    // Help ends it before anything is read or written.
    for arguments in [
        &exec[1..2],
        &words(&unit(), "Service", "ExecStartPost")[1..],
    ] {
        let output = Command::new(PROGRAM)
            .args(arguments)
            .arg("--help")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
}
