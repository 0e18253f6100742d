//! `uvxlan demo`: a network on one machine, to look at.

use std::process::ExitCode;

/// Arguments of `uvxlan demo`.
#[derive(clap::Args, Debug)]
pub struct DemoArgs {}

/// Runs the demo.
#[must_use]
pub fn run(args: &DemoArgs) -> ExitCode {
    let DemoArgs {} = args;
    super::print_err("uvxlan demo: not wired up yet\n");
    ExitCode::from(super::FAILURE)
}
