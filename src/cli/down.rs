//! `uvxlan down`: removes the TUN device that a daemon left behind, and its routes.

use std::process::ExitCode;

/// Arguments of `uvxlan down`.
#[derive(clap::Args, Debug, Clone, Copy, PartialEq, Eq)]
pub struct DownArgs {
    /// VXLAN network identifier: the device is flannel.N
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(0..=0xff_ffff)
    )]
    pub vni: u32,
}

/// Removes the device and its routes.
#[must_use]
pub fn run(args: &DownArgs) -> ExitCode {
    super::print_err(&format!(
        "uvxlan down: flannel.{} cannot be removed yet\n",
        args.vni
    ));
    ExitCode::from(super::FAILURE)
}
