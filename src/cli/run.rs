//! `uvxlan run`: the daemon.

use std::process::ExitCode;

use super::flannel_args::RunOptions;

/// Runs the daemon until it is told to stop.
#[must_use]
pub fn run(options: RunOptions) -> ExitCode {
    drop(options);
    super::print_err("uvxlan run: the daemon is not wired up yet\n");
    ExitCode::from(super::FAILURE)
}
