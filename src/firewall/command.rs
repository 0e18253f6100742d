//! Runs iptables and nft, and takes the lock that an old iptables needs.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Time limit for a program, which waits up to five seconds for the lock of another.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);

/// The lock file of iptables, unless `XTABLES_LOCKFILE` names another.
const LOCK_FILE: &str = "/run/xtables.lock";
/// How long another program may hold the lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    #[error(
        "there is no program {program}: install the package {package}, or choose another tool with --firewall"
    )]
    Missing {
        program: &'static str,
        package: &'static str,
    },
    #[error("cannot run {program}: {source}")]
    Run {
        program: &'static str,
        source: io::Error,
    },
    #[error("{command} did not end within {} s; does another program hold the rules' lock?", COMMAND_TIMEOUT.as_secs())]
    TimedOut { command: String },
    #[error("{command} failed ({status}): {message}")]
    Refused {
        command: String,
        status: String,
        /// What it printed, in one line.
        message: String,
    },
    #[error("cannot lock {}, as iptables does: {source}", path.display())]
    Lock { path: PathBuf, source: io::Error },
    /// Neither of two tools works here.
    #[error("{first}; {second}")]
    Neither { first: Box<Self>, second: Box<Self> },
}

/// Held while the rules are read and changed; released on drop.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "closing it is what unlocks")] File);

/// Takes the lock that keeps two programs from changing iptables' rules at the same time.
/// From 1.6.2 on iptables-restore takes it itself.
pub(super) async fn lock() -> Result<Lock, ToolError> {
    let path = std::env::var_os("XTABLES_LOCKFILE").unwrap_or_else(|| LOCK_FILE.into());
    let path = PathBuf::from(path);
    let failed = |source| ToolError::Lock {
        path: path.clone(),
        source,
    };
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create(true).truncate(false);
    let file = opened.open(&path).map_err(failed)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock(file)),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR)
                if Instant::now() < deadline =>
            {
                tokio::time::sleep(LOCK_RETRY_INTERVAL).await;
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// What `iptables-save` prints of a table.
pub(super) async fn iptables_save(table: &str) -> Result<String, ToolError> {
    run("iptables-save", &["-t", table], "").await
}

/// Carries out a transaction of nft.
pub(super) async fn nft(transaction: &str) -> Result<(), ToolError> {
    let done = run("nft", &["-f", "-"], transaction).await;
    done.map(drop)
}

/// Runs a program with this input; returns its output.
pub(crate) async fn run(
    program: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, ToolError> {
    let command = format!("{program} {}", arguments.join(" "));
    let cannot = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ToolError::Missing {
            program,
            package: match program {
                "nft" => "nftables",
                _ => "iptables",
            },
        },
        _ => ToolError::Run { program, source },
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(cannot)?;
    let pipe = child.stdin.take();
    let ended = async {
        if let Some(mut pipe) = pipe {
            // A program that ends early says why on stderr.
            let _ = pipe.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(COMMAND_TIMEOUT, ended).await {
        Ok(output) => output.map_err(cannot)?,
        Err(_) => return Err(ToolError::TimedOut { command }),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(ToolError::Refused {
        command,
        status: output.status.to_string(),
        message: message.split_whitespace().collect::<Vec<_>>().join(" "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_and_failures_are_returned() {
        assert_eq!(run("cat", &[], "text\n").await.unwrap(), "text\n");
        let error = run("no-such-program", &[], "").await.unwrap_err();
        assert!(matches!(error, ToolError::Missing { .. }), "{error}");
        let error = run("sh", &["-c", "echo a; echo b c >&2; exit 3"], "")
            .await
            .unwrap_err();
        assert!(error.to_string().contains("3): b c"), "{error}");
    }
}
