//! Installed files: program, units, manual pages, completions; and the Debian package.

use std::fs;
use std::os::unix::fs::PermissionsExt;
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
        crate::support::skipped(format!("no program {program}"));
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
fn manual_pages_have_every_flag_and_are_well_formed() {
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
    // The summary of a flag and its details are separate paragraphs.
    let parts = "the leases are below KEY/subnets/.\n\n[environment: FLANNELD_ETCD_PREFIX]";
    assert!(plain.contains(parts), "{parts:?} in {plain}");
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

/// Installs below a folder, with a umask that denies access to others.
fn make(target: &str, root: &Path) {
    let arguments = [
        "umask 077; make \"$@\"".to_owned(),
        "make".to_owned(),
        target.to_owned(),
        format!("DESTDIR={}", root.display()),
        "PREFIX=/usr".to_owned(),
        format!("BIN={PROGRAM}"),
    ];
    let mut words = vec!["-c"];
    words.extend(arguments.iter().map(String::as_str));
    let output = run("sh", &words);
    assert!(output.status.success(), "{output:?}");
}

/// Every file and folder below.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(below(&path));
        }
        found.push(path);
    }
    found
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn make_install_puts_everything_and_the_unit_fits_its_place() {
    if !exists("make") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    make("install", root);
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
        "usr/share/doc/uvxlan/README.md",
        "usr/share/man/man1/uvxlan-run.1",
        "usr/share/bash-completion/completions/uvxlan",
        "etc/default/uvxlan",
    ] {
        assert!(root.join(file).is_file(), "{file}");
    }
    let unit = fs::read_to_string(root.join("usr/lib/systemd/system/uvxlan.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/sbin/uvxlan run") && !unit.contains("/usr/local"));
    // Next to a distribution's flanneld, without replacing it.
    let name = root.join("usr/lib/uvxlan/flanneld");
    assert_eq!(
        fs::canonicalize(&name).unwrap(),
        fs::canonicalize(root.join("usr/sbin/uvxlan")).unwrap()
    );
    let version = run(name.to_str().unwrap(), &["--version"]);
    assert!(text(&version).starts_with("uvxlan "));
    let options = root.join("etc/default/uvxlan");
    assert_eq!(mode(&options), 0o640, "it may hold a password");
    for path in below(root).iter().filter(|path| **path != options) {
        assert_eq!(
            mode(path) & 0o044,
            0o044,
            "{} is readable for all",
            path.display()
        );
    }
    // An administrator's changes stay.
    fs::write(&options, "FLANNEL_OPTIONS=mine\n").unwrap();
    make("install", root);
    let kept = fs::read_to_string(&options).unwrap();
    assert_eq!(kept, "FLANNEL_OPTIONS=mine\n");

    if !exists("systemd-analyze") {
        return;
    }
    // Whether systemd accepts the unit is checked in `systemd_units.rs`.
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
fn the_debian_package_is_well_formed() {
    if !exists("dpkg-deb") || !exists("make") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    make("deb-root", &root);
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
    // A libc that is too old is refused at installation, not at the daemon's start.
    let needs = fs::read(PROGRAM).unwrap();
    let dynamic = needs.windows(8).any(|bytes| bytes == b"GLIBC_2.");
    assert_eq!(
        fields.contains("Depends: libc6 (>= 2."),
        dynamic,
        "{fields}"
    );
    let machine = text(&run("dpkg", &["--print-architecture"]));
    assert!(
        fields.contains(&format!("Architecture: {machine}")),
        "{fields}"
    );
    let size = fields
        .lines()
        .find_map(|line| line.strip_prefix("Installed-Size: "));
    let kib: u64 = size.unwrap().parse().unwrap();
    assert!(
        kib > fs::metadata(PROGRAM).unwrap().len() / 1024 / 20,
        "{kib}"
    );
    the_sums_are_those_of_the_files(Path::new(&root));
    let conffiles = text(&run("dpkg-deb", &["--info", package, "conffiles"]));
    assert_eq!(conffiles, "/etc/default/uvxlan\n");
    for script in ["postinst", "prerm", "postrm"] {
        let script = text(&run("dpkg-deb", &["--info", package, script]));
        assert!(script.starts_with("#!/bin/sh\n"), "{script}");
        let starts = ["systemctl start", "systemctl restart", "systemctl enable"];
        assert!(!starts.iter().any(|word| script.contains(word)), "{script}");
    }
    purging_touches_its_root_only(folder.path());
    let content = text(&run("dpkg-deb", &["--contents", package]));
    for file in [
        "./usr/sbin/uvxlan",
        "./etc/default/uvxlan",
        "./usr/share/man/man1/uvxlan-run.1.gz",
        "./usr/lib/uvxlan/flanneld ->",
        "./usr/share/doc/uvxlan/copyright",
    ] {
        assert!(content.contains(file), "{file}:\n{content}");
    }
}

/// `dpkg --verify` needs one for each file except the settings.
fn the_sums_are_those_of_the_files(root: &Path) {
    let check = Command::new("md5sum")
        .args(["--check", "--quiet", "DEBIAN/md5sums"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
    let sums = fs::read_to_string(root.join("DEBIAN/md5sums")).unwrap();
    let files = below(&root.join("usr"));
    let files = files
        .iter()
        .filter(|path| path.is_file() && !path.is_symlink());
    assert_eq!(sums.lines().count(), files.count(), "{sums}");
}

#[test]
fn the_packages_architecture_is_the_programs() {
    let folder = tempfile::tempdir().unwrap();
    let mut elf = fs::read(PROGRAM).unwrap();
    elf.truncate(4096);
    for (machine, little, name) in [
        (62u16, true, "amd64"),
        (183, true, "arm64"),
        (243, true, "riscv64"),
        (22, false, "s390x"),
    ] {
        elf[5] = if little { 1 } else { 2 };
        let bytes = if little {
            machine.to_le_bytes()
        } else {
            machine.to_be_bytes()
        };
        elf[18..20].copy_from_slice(&bytes);
        let program = folder.path().join(name);
        fs::write(&program, &elf).unwrap();
        let folder = folder.path().to_str().unwrap();
        let arguments = [program.to_str().unwrap(), folder];
        let control = text(&run("scripts/debian/control.sh", &arguments));
        assert!(
            control.contains(&format!("Architecture: {name}\n")),
            "{control}"
        );
    }
}

/// dpkg runs the scripts of a package below another root (`DPKG_ROOT`) on this one.
fn purging_touches_its_root_only(root: &Path) {
    let state = root.join("var/lib/uvxlan/state.json");
    let other = root.join("var/lib/other");
    fs::create_dir_all(state.parent().unwrap()).unwrap();
    fs::write(&state, "{}").unwrap();
    fs::write(&other, "").unwrap();
    // Checked before it runs, since it could remove the state of this machine's own daemon.
    let postrm = fs::read_to_string("scripts/debian/postrm").unwrap();
    for line in postrm.lines().filter(|line| line.contains("rm -")) {
        assert!(line.contains("\"${DPKG_ROOT:-}/var/lib/uvxlan\""), "{line}");
    }
    for (script, word, kept) in [
        ("postinst", "configure", true),
        ("prerm", "upgrade", true),
        ("prerm", "remove", true),
        ("postrm", "remove", true),
        ("postrm", "purge", false),
    ] {
        let status = Command::new(Path::new("scripts/debian").join(script))
            .arg(word)
            .env("DPKG_ROOT", root)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(status.success(), "{script} {word}");
        assert_eq!(state.exists(), kept, "{script} {word}");
    }
    assert!(other.exists() && !state.parent().unwrap().exists());
}
