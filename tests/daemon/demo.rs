//! `uvxlan demo` as a user runs it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn possible() -> bool {
    if let Err(reason) = uvxlan::testbed::available() {
        crate::support::skipped(reason);
        return false;
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        crate::support::skipped("there is no /dev/net/tun");
        return false;
    }
    true
}

fn demo(arguments: &[&str]) -> Option<Output> {
    if !possible() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_uvxlan"))
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    Some(output)
}

#[test]
fn the_demo_ends_with_a_table_of_both_contenders() {
    let Some(output) = demo(&["--size", "16"]) else {
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let row = |name: &str| {
        text.lines()
            .rfind(|line| line.starts_with(name))
            .unwrap_or_default()
    };
    for name in ["uvxlan", "kernel vxlan"] {
        let row = row(name);
        if name == "kernel vxlan" && row.contains("not on this machine") {
            crate::support::skipped(format!("no kernel vxlan: {row}"));
            continue;
        }
        assert!(row.contains(" 0/20 ") && row.contains(" 62 "), "{row}");
        assert!(row.ends_with("hash equal"), "{row}");
    }
}

#[test]
fn figures_come_as_json_too() {
    let Some(output) = demo(&["--size", "1", "--json", "--no-kernel"]) else {
        return;
    };
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let contenders = value["contenders"].as_array().unwrap();
    assert_eq!(contenders.len(), 1);
    assert_eq!(contenders[0]["hash_equal"], true);
    assert_eq!(contenders[0]["pings_received"], 20);
}

/// Killed on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command as a user would copy it, until its output contains the words; returns the output.
fn says(command: &str, words: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let output = Command::new("sh").args(["-c", command]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() && text.contains(words) {
            return;
        }
        assert!(Instant::now() < deadline, "{command}: {output:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The same in a terminal.
fn shows(folder: &std::path::Path, command: &str, words: &str) {
    if Command::new("tmux").arg("-V").output().is_err() {
        crate::support::skipped("no program tmux");
        return;
    }
    let tmux = |arguments: &[&str]| {
        let mut tmux = Command::new("tmux");
        tmux.env_remove("TMUX").env("TERM", "xterm");
        tmux.env("LC_ALL", "C.UTF-8").arg("-S");
        let output = tmux.arg(folder.join("tmux")).args(arguments).output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    };
    tmux(&["new-session", "-d", "-x", "120", "-y", "30", command]);
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut screen = String::new();
    while !screen.contains(words) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        screen = tmux(&["capture-pane", "-p"]);
    }
    tmux(&["kill-server"]);
    assert!(screen.contains(words), "{command}:\n{screen}");
}

#[test]
fn a_kept_demo_can_be_inspected_with_the_printed_commands() {
    if !possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("demo");
    std::fs::create_dir(&place).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_uvxlan"));
    command
        .args(["demo", "--keep", "--no-kernel", "--size", "1"])
        .env("TMPDIR", &place)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut demo = Running(command.spawn().unwrap());
    let mut lines = BufReader::new(demo.0.stdout.take().unwrap()).lines();
    let told: Vec<_> = lines
        .by_ref()
        .map(|line| line.unwrap())
        .take_while(|line| !line.contains("Press Enter to end"))
        .collect();
    let commands: Vec<_> = told
        .iter()
        .filter_map(|line| line.trim().strip_prefix("nsenter "))
        .map(|rest| format!("nsenter {rest}"))
        .collect();
    assert_eq!(commands.len(), 12, "{told:#?}");
    for (what, expected) in [
        (" status", "PEERS (1)"),
        (" doctor", "0 errors, 0 warnings"),
        (" ip route", "dev flannel.1"),
        (" trace ", "passes the peer check"),
        (" ping ", " 0% packet loss"),
        (" top", "peers 1..1 of 1"),
    ] {
        let on_both: Vec<_> = commands.iter().filter(|line| line.contains(what)).collect();
        assert_eq!(on_both.len(), 2, "{what}: {commands:#?}");
        for command in on_both {
            match what {
                " top" => shows(folder.path(), command, expected),
                _ => says(command, expected),
            }
        }
    }
    demo.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    let rest: Vec<_> = lines.map(|line| line.unwrap()).collect();
    assert!(demo.0.wait().unwrap().success(), "{rest:#?}");
    assert!(
        rest.iter().any(|line| line.ends_with("hash equal")),
        "{rest:#?}"
    );
    let left: Vec<_> = std::fs::read_dir(&place).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
