//! `uvxlan run`: the daemon.

pub mod flags;
pub mod flannel_args;
pub mod help;
pub mod words;

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::daemon::failure::Failure;
use crate::daemon::log;
use crate::daemon::options::RunOptions;
use crate::daemon::serve::privileges;
use crate::daemon::start;

/// Runs the daemon until it is told to stop.
#[must_use]
pub fn run(options: RunOptions) -> ExitCode {
    let limit = log::start(options.log_format, options.log_level());
    log::announce(&options);
    privileges::starting();
    match serve(&options, limit) {
        Ok(()) => ExitCode::from(super::OK),
        Err(failure) => {
            tracing::error!(event = "failed", "{failure}");
            ExitCode::from(failure.exit_status())
        }
    }
}

fn serve(options: &RunOptions, limit: log::Limit) -> Result<(), Failure> {
    // One thread: the control side must never compete with the packet workers.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_start(privileges::serving)
        .build()
        .map_err(Failure::Runtime)?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        stop_on_signals(stop.clone()).map_err(Failure::Runtime)?;
        tokio::spawn(log::report_suppressed(limit));
        start::run(options, stop).await
    });
    // A store that does not answer must not hold up the end.
    runtime.shutdown_background();
    outcome
}

/// The first SIGTERM or SIGINT stops in good order, the second ends at once: flannel
/// unregisters its handler likewise.
fn stop_on_signals(stop: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(event = "signal", name, "stopping");
        stop.cancel();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(i32::from(super::FAILURE));
    });
    Ok(())
}
