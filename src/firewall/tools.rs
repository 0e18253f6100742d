//! Running iptables and nft, and the lock of an old iptables.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How long a program may take: it waits up to five seconds for others' lock.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where iptables has its lock, unless `XTABLES_LOCKFILE` names another place.
const LOCK: &str = "/run/xtables.lock";
/// How long others may hold it.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two tries to get it.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Why a program did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error(
        "there is no program {program}: install the package {package}, or choose another tool with --firewall"
    )]
    Missing {
        /// The program.
        program: &'static str,
        /// What to install.
        package: &'static str,
    },
    /// It could not be run.
    #[error("cannot run {program}: {source}")]
    Run {
        /// The program.
        program: &'static str,
        /// What came back.
        source: io::Error,
    },
    /// It took too long.
    #[error("{command} did not end within {} s; does another program hold the rules' lock?", PATIENCE.as_secs())]
    Stuck {
        /// The command line.
        command: String,
    },
    /// It refused.
    #[error("{command} failed ({status}): {message}")]
    Refused {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// What it printed, in one line.
        message: String,
    },
    /// The lock of iptables could not be had.
    #[error("cannot lock {}, as iptables does: {source}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// Neither of two tools works here.
    #[error("{first}; {second}")]
    Neither {
        /// What the preferred one said.
        first: Box<Self>,
        /// What the other said.
        second: Box<Self>,
    },
}

/// Held while the rules are read and changed; given back when it is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closing it is what unlocks")] File);

/// Takes the lock by which programs that change iptables' rules keep out of each other's way.
/// From 1.6.2 on iptables-restore does so itself.
///
/// # Errors
/// [`ToolError::Lock`] when others keep it for long.
pub async fn lock() -> Result<Lock, ToolError> {
    let path = std::env::var_os("XTABLES_LOCKFILE").unwrap_or_else(|| LOCK.into());
    let path = PathBuf::from(path);
    let failed = |source| ToolError::Lock {
        path: path.clone(),
        source,
    };
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create(true).truncate(false);
    let file = opened.open(&path).map_err(failed)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock(file)),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR)
                if Instant::now() < deadline =>
            {
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Runs a program with this input; returns what it prints.
///
/// # Errors
/// [`ToolError`].
pub async fn run(
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
    let output = match tokio::time::timeout(PATIENCE, ended).await {
        Ok(output) => output.map_err(cannot)?,
        Err(_) => return Err(ToolError::Stuck { command }),
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
    async fn what_comes_back_is_told() {
        assert_eq!(run("cat", &[], "text\n").await.unwrap(), "text\n");
        let error = run("no-such-program", &[], "").await.unwrap_err();
        assert!(matches!(error, ToolError::Missing { .. }), "{error}");
        let error = run("sh", &["-c", "echo a; echo b c >&2; exit 3"], "")
            .await
            .unwrap_err();
        assert!(error.to_string().contains("3): b c"), "{error}");
    }
}
