//! Exit status and output streams of the program.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

/// The program with a clean environment.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uvxlan"));
    command.env_clear().stdin(Stdio::null());
    command
}

fn output(command: &mut Command) -> Output {
    command.output().expect("the program starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("output is UTF-8")
}

/// Asserts status 0, output on stdout, and nothing on stderr.
fn answer(command: &mut Command) -> String {
    let output = output(command);
    assert_eq!(output.status.code(), Some(0), "{command:?}: {output:?}");
    assert_eq!(text(&output.stderr), "", "{command:?}");
    text(&output.stdout).to_owned()
}

/// Asserts this status, nothing on stdout, and a message on stderr.
fn complaint(command: &mut Command, status: i32) -> String {
    let output = output(command);
    assert_eq!(
        output.status.code(),
        Some(status),
        "{command:?}: {output:?}"
    );
    assert_eq!(text(&output.stdout), "", "{command:?}");
    text(&output.stderr).to_owned()
}

#[test]
fn version_and_help_answer_on_stdout() {
    for arguments in [&["--version"][..], &["-version"], &["run", "--version"]] {
        let line = answer(program().args(arguments));
        assert!(
            line.starts_with("uvxlan ") && line.lines().count() == 1,
            "{line}"
        );
    }
    let line = answer(program().arg0("/usr/bin/flanneld").arg("-version"));
    assert!(line.starts_with("uvxlan "), "{line}");

    let short = answer(program().args(["run", "-h"]));
    let long = answer(program().args(["run", "--help"]));
    assert!(short.contains("--etcd-endpoints") && long.len() > short.len());
    assert!(answer(program().arg("--help")).contains("docker-opts"));
    assert!(!long.contains('\u{1b}'), "no colours in a pipe");
}

#[test]
fn mistakes_end_with_2_on_stderr() {
    complaint(&mut program(), 2);
    assert!(complaint(program().arg("rnu"), 2).contains("'uvxlan run'"));
    let unknown = complaint(program().args(["run", "--etcd-endpoint=http://a"]), 2);
    assert!(unknown.contains("--etcd-endpoints?"), "{unknown}");
    let unknown = complaint(program().arg0("flanneld").arg("-etcd-cafil=/x"), 2);
    assert!(unknown.contains("--etcd-cafile?"), "{unknown}");
    let value = complaint(program().args(["run", "--public-ip=nowhere"]), 2);
    assert!(value.contains("an IPv4 address"), "{value}");
    complaint(program().arg("run").env("FLANNELD_PUBLIC_IP", "nowhere"), 2);
    let early = complaint(program().arg("-etcd-endpoints=http://a"), 2);
    assert!(early.contains("uvxlan run --etcd-endpoints"), "{early}");
}

#[test]
fn kubernetes_mode_ends_with_78() {
    let refused = complaint(program().args(["run", "--kube-subnet-mgr"]), 78);
    assert!(refused.contains("not supported yet"), "{refused}");
}

#[test]
fn a_reader_that_went_away_is_no_panic() {
    for arguments in [&["run", "--help"][..], &["--version"], &["--help"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = output(
            program()
                .args(arguments)
                .stdout(writer)
                .stderr(Stdio::piped()),
        );
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
    }
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = output(program().arg("rnu").stderr(writer));
    assert_eq!(output.status.code(), Some(2));
}

/// The log of a daemon that cannot reach its store, with a file as its stderr.
fn log_of_a_failing_start(journal: bool) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let file = std::fs::File::create(&path).unwrap();
    let found = file.metadata().unwrap();
    let inode = found.ino() + u64::from(!journal);
    let run = |flag: &str, name: &str| format!("--{flag}={}", folder.path().join(name).display());
    let status = Command::new(env!("CARGO_BIN_EXE_uvxlan"))
        .args(["run", "--fail-fast", "--etcd-endpoints=http://127.0.0.1:1"])
        .args([run("control-socket", "control"), run("state-dir", "state")])
        .arg("--metrics-listen=off")
        .env("JOURNAL_STREAM", format!("{}:{inode}", found.dev()))
        .stderr(file)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(69));
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_journal_gets_priorities_and_no_second_time() {
    let lines = log_of_a_failing_start(true);
    for line in lines.lines() {
        let plain = ["<3>", "<4>", "<6>"]
            .iter()
            .find_map(|priority| line.strip_prefix(priority));
        let plain = plain.unwrap_or_else(|| panic!("no priority: {line}"));
        assert!(
            !plain.contains("INFO") && !plain.starts_with("20"),
            "{line}"
        );
    }
    assert!(
        lines.contains("<3>") && lines.contains("event=\"failed\""),
        "{lines}"
    );
    // Not the named stream: we write time and level ourselves.
    let lines = log_of_a_failing_start(false);
    assert!(lines.lines().all(|line| line.starts_with("20")), "{lines}");
}
