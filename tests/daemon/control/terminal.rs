//! What a user sees in a terminal: `status --watch` and `top`, in tmux.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{lab, socket, text};

use crate::support::directory::NodePair;
use crate::support::need;
use crate::support::nodes::{NodeUnderTest, PROGRAM, eventually, possible};

/// A terminal; closed on drop.
struct Tmux {
    socket: PathBuf,
}

impl Tmux {
    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .env_remove("TMUX")
            .env("TERM", "xterm")
            .env("LC_ALL", "C.UTF-8")
            .arg("-S")
            .arg(&self.socket)
            .args(arguments)
            .output()
            .unwrap();
        text(&output)
    }

    fn screen(&self) -> String {
        self.run(&["capture-pane", "-p"])
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        self.run(&["kill-server"]);
    }
}

/// A terminal for a command, if tmux is installed.
fn terminal(lab: &NodePair, command: &str) -> Option<Tmux> {
    if Command::new("tmux").arg("-V").output().is_err() {
        crate::support::skipped("no program tmux");
        return None;
    }
    let tmux = Tmux {
        socket: lab.store.folder.path().join("tmux"),
    };
    let command = format!("{command}; echo left with $?; sleep 60");
    tmux.run(&["new-session", "-d", "-x", "120", "-y", "40", &command]);
    Some(tmux)
}

/// The number before a unit in a line of the screen: `3.4` of `to peers: 3.4 Mb/s`.
fn figure(screen: &str, before: &str) -> Option<f64> {
    let (_, rest) = screen.split_once(before)?;
    rest.trim_start().split([' ', ',']).next()?.parse().ok()
}

fn signal(node: &NodeUnderTest, signal: Signal) {
    let pid = node.daemon.as_ref().unwrap().pid();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn top_shows_traffic_and_obeys_its_keys() {
    need!(possible(&["ip"]));
    let lab = lab();
    let command = format!(
        "{PROGRAM} top --interval 0.3 --control-socket {}",
        socket(&lab.a).display()
    );
    let Some(tmux) = terminal(&lab, &command) else {
        return;
    };
    let subnet = lab.b.env.unwrap().subnet.to_string();
    eventually("the peer is on the screen", || {
        tmux.screen().contains(&subnet)
    });
    let bars = |screen: &str| screen.contains(['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']);
    eventually("traffic, its graph and the threads are shown", || {
        lab.a.transfer(&lab.b, 2 << 20);
        let screen = tmux.screen();
        figure(&screen, "to peers:").is_some_and(|rate| rate > 0.0)
            && figure(&screen, "packets per call: sent").is_some_and(|size| size > 0.0)
            && figure(&screen, "uvxlan-0").is_some_and(|share| share >= 0.0)
            && bars(&screen)
    });
    tmux.run(&["send-keys", "s"]);
    eventually("the order changes", || {
        tmux.screen().contains("by round trip")
    });
    tmux.run(&["send-keys", "p"]);
    eventually("it pauses", || tmux.screen().contains("PAUSED"));
    let paused = tmux.screen();
    lab.a.transfer(&lab.b, 2 << 20);
    std::thread::sleep(Duration::from_millis(900));
    assert_eq!(tmux.screen(), paused, "a paused screen does not change");
    tmux.run(&["send-keys", "p"]);
    eventually("it continues", || {
        let screen = tmux.screen();
        !screen.contains("PAUSED") && screen != paused
    });
    // Keys still work while the daemon does not answer.
    signal(&lab.a, Signal::STOP);
    eventually("the failure is shown", || {
        tmux.screen().contains("has not answered")
    });
    tmux.run(&["send-keys", "s"]);
    eventually("a key still works", || tmux.screen().contains("by loss"));
    signal(&lab.a, Signal::CONT);
    eventually("it has recovered", || {
        !tmux.screen().contains("has not answered")
    });
    tmux.run(&["send-keys", "q"]);
    eventually("it ends, and the terminal is restored", || {
        tmux.screen().contains("left with 0")
    });
    // Not for a pipe.
    let output = lab.a.ask(&["top"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_watch_outlives_the_daemon_and_not_its_reader() {
    need!(possible(&["ip"]));
    let mut lab = lab();
    let command = format!(
        "{PROGRAM} status --watch --control-socket {}",
        socket(&lab.a).display()
    );
    let Some(tmux) = terminal(&lab, &command) else {
        return;
    };
    eventually("the status is shown", || {
        tmux.screen().contains("PEERS (1)")
    });
    lab.a.stop_daemon();
    eventually(
        "the loss of the daemon is shown above the last status",
        || {
            let screen = tmux.screen();
            screen.contains("no daemon answers") && screen.contains("PEERS (1)")
        },
    );
    lab.a.start_daemon();
    let pid = format!("(pid {},", lab.a.daemon.as_ref().unwrap().pid());
    eventually("the new daemon's status is shown", || {
        let screen = tmux.screen();
        screen.contains(&pid) && !screen.contains("no daemon answers")
    });

    // Into a pipe: plain text, and the end when the reader is gone.
    let mut command = Command::new(PROGRAM);
    command
        .args(["status", "--watch", "--control-socket"])
        .arg(socket(&lab.a))
        .stdout(Stdio::piped());
    let command = uvxlan::sys::process::dies_with_parent(command);
    let mut watch = lab.a.host.namespace().command(command).spawn().unwrap();
    let mut stdout = watch.stdout.take().unwrap();
    let mut shown = String::new();
    let mut piece = [0; 512];
    while shown.matches("DROPPED PACKETS").count() < 2 {
        let read = stdout.read(&mut piece).unwrap();
        assert!(read > 0, "{shown}");
        shown.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
    drop(stdout);
    let deadline = Instant::now() + Duration::from_secs(20);
    let ended = loop {
        match watch.try_wait().unwrap() {
            Some(status) => break Some(status.code()),
            None if Instant::now() > deadline => break None,
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let _ = watch.kill();
    let _ = watch.wait();
    assert_eq!(ended, Some(Some(0)), "it ends when its reader is gone");
}
