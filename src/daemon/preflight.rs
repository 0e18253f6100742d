//! What must be there, looked at before anything is changed on the host or in the datastore:
//! a start that cannot succeed leaves nothing behind.

use std::fs::OpenOptions;
use std::io;
use std::net::Ipv4Addr;

use super::failure::Failure;
use crate::host::port;
use crate::sys::privileges::{self, Capability};
use crate::sys::tun::TunError;

const CLONE_DEVICE: &str = "/dev/net/tun";

/// What a start needs.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// Where tunnels are received.
    pub address: Ipv4Addr,
    /// Their UDP port.
    pub port: u16,
    /// Whether a kernel device that holds the port will be taken over.
    pub takes_over: bool,
}

/// Checks it.
///
/// # Errors
/// The first thing that is missing, with the remedy.
pub fn check(needs: Needs) -> Result<(), Failure> {
    if privileges::lacks(Capability::CAP_NET_ADMIN) {
        return Err(Failure::Capability {
            name: "CAP_NET_ADMIN",
            purpose: "to make the device, its routes and the rules",
        });
    }
    let tried = || format!("open {CLONE_DEVICE}");
    let opened = OpenOptions::new().read(true).write(true).open(CLONE_DEVICE);
    if let Err(source) = opened {
        return Err(Failure::Tun(match source.kind() {
            io::ErrorKind::NotFound => TunError::NoCloneDevice,
            io::ErrorKind::PermissionDenied => TunError::Permission {
                tried: tried(),
                source,
            },
            // ENXIO, ENODEV: the node is there, the driver is not.
            _ if matches!(source.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => {
                TunError::NoCloneDevice
            }
            _ => TunError::Other {
                tried: tried(),
                source,
            },
        }));
    }
    match port::udp_holder(needs.address, needs.port) {
        Some(holder) if !needs.takes_over => Err(Failure::PortHeld {
            port: needs.port,
            holder,
        }),
        _ => Ok(()),
    }
}
