//! `uvxlan down`: removes the TUN device that a daemon left behind, and its routes.

use std::process::ExitCode;

use super::{OK, fail, print_out, runtime};
use crate::daemon::failure::Failure;
use crate::daemon::instance;
use crate::host::netlink::Netlink;

/// Arguments of `uvxlan down`.
#[derive(clap::Args, Debug)]
pub(super) struct DownArgs {
    /// VXLAN network identifier; the device is flannel.N
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=0xff_ffff))]
    pub(super) vni: u32,
}

pub(super) fn run(args: &DownArgs) -> ExitCode {
    let device = format!("flannel.{}", args.vni);
    match remove(&device) {
        Ok(true) => print_out(&format!("removed {device} and its routes\n")),
        Ok(false) => print_out(&format!(
            "nothing to remove: there is no TUN device {device}\n"
        )),
        Err(failure) => return fail("down", failure.exit_status(), failure),
    }
    ExitCode::from(OK)
}

/// Leaves alone a device that is in use or not a TUN device.
fn remove(device: &str) -> Result<bool, Failure> {
    let _lock = instance::claim(device)?;
    runtime().map_err(Failure::Runtime)?.block_on(async {
        let netlink = Netlink::connect()?;
        let link = netlink.link_by_name(device).await?;
        let Some(link) = link.filter(|link| link.kind.as_deref() == Some("tun")) else {
            return Ok(false);
        };
        netlink.delete_link(link.index).await?;
        Ok(true)
    })
}
