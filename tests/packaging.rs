//! What is installed: program, units, manual pages, completions, and the Debian package's
//! shape.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_uvxlan");

fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    command
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn exists(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: no program {program}");
    }
    found
}

/// Flags that `uvxlan run --help` shows.
fn flags() -> Vec<String> {
    let help = text(&run(PROGRAM, &["run", "--help"]));
    let flags = help.split_whitespace().filter_map(|word| {
        let name = word.strip_prefix("--")?;
        let plain = name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        (plain && name.len() > 2).then(|| name.to_owned())
    });
    let mut flags: Vec<_> = flags.collect();
    flags.sort();
    flags.dedup();
    assert!(flags.len() > 40, "{flags:?}");
    flags
}

#[test]
fn manual_pages_tell_every_flag_and_are_well_formed() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().to_str().unwrap();
    assert!(run(PROGRAM, &["man", directory]).status.success());
    let pages: Vec<PathBuf> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    for name in [
        "uvxlan.1",
        "uvxlan-run.1",
        "uvxlan-status.1",
        "uvxlan-lease-list.1",
    ] {
        assert!(folder.path().join(name).exists(), "{name} in {pages:?}");
    }
    let run_page = fs::read_to_string(folder.path().join("uvxlan-run.1")).unwrap();
    let plain = run_page.replace('\\', "");
    for flag in flags() {
        assert!(plain.contains(&format!("--{flag}")), "--{flag}");
    }
    for words in ["FLANNELD_IFACE", "/run/flannel/subnet.env", "Exit status"] {
        assert!(plain.contains(words), "{words}");
    }
    if !exists("groff") {
        return;
    }
    for page in pages {
        let output = run("groff", &["-man", "-Tutf8", "-ww", page.to_str().unwrap()]);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && complaints.is_empty(),
            "{}: {complaints}",
            page.display()
        );
    }
}

#[test]
fn completions_know_the_commands_and_the_daemons_flags() {
    let bash = text(&run(PROGRAM, &["completions", "bash"]));
    for words in ["--etcd-endpoints", "--peer-check", "status", "trace"] {
        assert!(bash.contains(words), "{words}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("uvxlan");
    fs::write(&file, &bash).unwrap();
    assert!(
        run("bash", &["-n", file.to_str().unwrap()])
            .status
            .success()
    );
    for shell in ["zsh", "fish"] {
        assert!(text(&run(PROGRAM, &["completions", shell])).contains("uvxlan"));
    }
    assert!(!run(PROGRAM, &["completions", "csh"]).status.success());
    let unwritable = run(PROGRAM, &["man", "/proc/nowhere"]);
    assert_eq!(unwritable.status.code(), Some(73), "{unwritable:?}");
}

fn install(root: &Path, prefix: &str) {
    let destination = format!("DESTDIR={}", root.display());
    let (prefix, program) = (format!("PREFIX={prefix}"), format!("BIN={PROGRAM}"));
    let output = run("make", &["install", &destination, &prefix, &program]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn make_install_puts_everything_and_the_unit_fits_its_place() {
    if !exists("make") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    install(root, "/usr");
    for file in [
        "usr/sbin/uvxlan",
        "usr/sbin/mk-docker-opts.sh",
        "usr/lib/systemd/system/uvxlan.service",
        "usr/share/uvxlan/flanneld.service",
        "usr/share/uvxlan/50-flannel.link",
        "usr/share/uvxlan/50-flannel.network",
        "usr/share/uvxlan/uvxlan-networkmanager.conf",
        "usr/share/uvxlan/docker.service.d/uvxlan.conf",
        "usr/share/uvxlan/alerts.yml",
        "usr/share/man/man1/uvxlan-run.1",
        "usr/share/bash-completion/completions/uvxlan",
        "etc/default/uvxlan",
    ] {
        assert!(root.join(file).is_file(), "{file}");
    }
    let unit = fs::read_to_string(root.join("usr/lib/systemd/system/uvxlan.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/sbin/uvxlan run") && !unit.contains("/usr/local"));
    // Beside a distribution's flanneld, not in its place.
    let name = root.join("usr/lib/uvxlan/flanneld");
    assert_eq!(
        fs::canonicalize(&name).unwrap(),
        fs::canonicalize(root.join("usr/sbin/uvxlan")).unwrap()
    );
    let version = run(name.to_str().unwrap(), &["--version"]);
    assert!(text(&version).starts_with("uvxlan "));
    // What an administrator wrote stays.
    fs::write(root.join("etc/default/uvxlan"), "FLANNEL_OPTIONS=mine\n").unwrap();
    install(root, "/usr");
    let kept = fs::read_to_string(root.join("etc/default/uvxlan")).unwrap();
    assert_eq!(kept, "FLANNEL_OPTIONS=mine\n");

    if !exists("systemd-analyze") {
        return;
    }
    // Whether systemd takes the unit is tests/systemd_units.rs' question.
    let root = format!("--root={}", root.display());
    let security = run(
        "systemd-analyze",
        &[
            "security",
            "--offline=true",
            "--threshold=35",
            &root,
            "uvxlan.service",
        ],
    );
    assert!(
        security.status.success(),
        "an exposure of at most 3.5: {security:?}"
    );
}

#[test]
fn the_debian_package_is_one() {
    if !exists("dpkg-deb") || !exists("make") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir_all(root.join("DEBIAN")).unwrap();
    install(&root, "/usr");
    fs::write(
        root.join("DEBIAN/control"),
        text(&run("./scripts/debian-control.sh", &[])),
    )
    .unwrap();
    fs::write(root.join("DEBIAN/conffiles"), "/etc/default/uvxlan\n").unwrap();
    let (root, package) = (root.display().to_string(), folder.path().join("uvxlan.deb"));
    let package = package.to_str().unwrap();
    text(&run(
        "dpkg-deb",
        &["-Znone", "--root-owner-group", "--build", &root, package],
    ));
    let fields = text(&run("dpkg-deb", &["--field", package]));
    let version = format!("Version: {}", env!("CARGO_PKG_VERSION"));
    assert!(
        fields.contains("Package: uvxlan") && fields.contains(&version),
        "{fields}"
    );
    let content = text(&run("dpkg-deb", &["--contents", package]));
    for file in [
        "./usr/sbin/uvxlan",
        "./etc/default/uvxlan",
        "./usr/lib/uvxlan/flanneld ->",
    ] {
        assert!(content.contains(file), "{file}:\n{content}");
    }
}
