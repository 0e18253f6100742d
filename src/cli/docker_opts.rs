//! `uvxlan docker-opts`: Docker's options from the subnet file.

use std::process::ExitCode;

/// Arguments of `uvxlan docker-opts`.
#[derive(clap::Args, Debug)]
pub struct DockerOptsArgs {}

/// Writes the options.
#[must_use]
pub fn run(args: &DockerOptsArgs) -> ExitCode {
    let DockerOptsArgs {} = args;
    super::print_err("uvxlan docker-opts: not wired up yet\n");
    ExitCode::from(super::FAILURE)
}
