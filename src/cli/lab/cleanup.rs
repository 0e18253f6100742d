//! Cleans up after a command that starts daemons, whatever ends it.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::cli::runtime;

/// A temporary folder and the child processes. Dropping it removes the folder; children end with
/// their handles or with this process.
///
/// Ctrl-C would end this process without running any destructor, so a thread waits for it and
/// cleans up.
pub(crate) struct Cleanup {
    folder: Arc<TempDir>,
    children: Arc<Mutex<Vec<u32>>>,
}

impl Cleanup {
    /// Makes the folder and starts the thread that waits for signals.
    pub(crate) fn start(purpose: &str) -> io::Result<Self> {
        let prefix = format!("uvxlan-{purpose}-");
        let folder = Arc::new(tempfile::Builder::new().prefix(&prefix).tempdir()?);
        let children: Arc<Mutex<Vec<u32>>> = Arc::default();
        let this = Self {
            folder: Arc::clone(&folder),
            children: Arc::clone(&children),
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                if wait_for_signal().is_ok() {
                    for pid in children
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .iter()
                    {
                        terminate(*pid);
                    }
                    let _ = std::fs::remove_dir_all(folder.path());
                    std::process::exit(130);
                }
            })?;
        Ok(this)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends this child too at a signal.
    pub(crate) fn add_child(&self, pid: u32) {
        self.children
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(pid);
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        // The thread holds the folder too, so dropping our handle would not remove it.
        let _ = std::fs::remove_dir_all(self.folder.path());
    }
}

fn terminate(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may be gone already.
        let _ = kill_process(pid, Signal::TERM);
    }
}

fn wait_for_signal() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    runtime()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        Ok(())
    })
}
