//! `uvxlan run`: the daemon.

pub(crate) mod flags;
pub(crate) mod flags_page;
pub(crate) mod flannel_args;
pub(crate) mod help;
mod words;

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::daemon::failure::Failure;
use crate::daemon::log;
use crate::daemon::options::RunOptions;
use crate::daemon::serve::privileges;
use crate::daemon::start;

/// Runs the daemon until it is told to stop.
pub(crate) fn run(options: RunOptions) -> ExitCode {
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
    // A single thread, so that the control side never competes with the packet threads.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_start(privileges::serving)
        .build()
        .map_err(Failure::Runtime)?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        stop_on_signals(stop.clone()).map_err(Failure::Runtime)?;
        tokio::spawn(log::report_suppressed(limit));
        start::run(options, stop).await
    });
    // Do not wait for a datastore that does not answer.
    runtime.shutdown_background();
    result
}

/// The first SIGTERM or SIGINT stops the daemon cleanly, the second ends it at once, as in
/// flannel, which unregisters its handler after the first.
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
