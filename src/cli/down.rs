//! `uvxlan down`: removes the TUN device that a daemon left behind, and its routes.

use std::process::ExitCode;

use crate::daemon::failure::Failure;
use crate::daemon::instance;
use crate::host::netlink::Netlink;

/// Arguments of `uvxlan down`.
#[derive(clap::Args, Debug, Clone, Copy, PartialEq, Eq)]
pub struct DownArgs {
    /// VXLAN network identifier: the device is flannel.N
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=0xff_ffff))]
    pub vni: u32,
}

/// Removes the device; its routes go with it.
#[must_use]
pub fn run(args: &DownArgs) -> ExitCode {
    let device = format!("flannel.{}", args.vni);
    match remove(&device) {
        Ok(true) => {
            super::print_out(&format!("removed {device} and its routes\n"));
            ExitCode::from(super::OK)
        }
        Ok(false) => {
            super::print_out(&format!("there is no TUN device {device}\n"));
            ExitCode::from(super::OK)
        }
        Err(failure) => {
            super::print_err(&format!("uvxlan down: {failure}\n"));
            ExitCode::from(failure.exit_status())
        }
    }
}

/// A device in use, or one that is no TUN device, is left alone.
fn remove(device: &str) -> Result<bool, Failure> {
    let _lock = instance::claim(device)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::Runtime)?;
    runtime.block_on(async {
        let netlink = Netlink::connect()?;
        let link = netlink.link_by_name(device).await?;
        let Some(link) = link.filter(|link| link.kind.as_deref() == Some("tun")) else {
            return Ok(false);
        };
        netlink.delete_link(link.index).await?;
        Ok(true)
    })
}
