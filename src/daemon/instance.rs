//! One daemon per device in a network namespace.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::daemon::failure::Failure;

/// Held while this process serves the device. The kernel releases it with the process, however
/// that ends.
#[derive(Debug)]
pub(crate) struct InstanceLock {
    _socket: UnixDatagram,
}

/// The abstract socket address that a device's daemon holds.
pub(crate) fn address(device: &str) -> String {
    format!("uvxlan/{device}")
}

/// Claims the device's name as an abstract socket address, which is unique in a network
/// namespace as the device is. Without it, two daemons would share the device's queues and the
/// port, and each would lose half of the packets.
pub(crate) fn claim(device: &str) -> Result<InstanceLock, Failure> {
    let name = address(device);
    let claimed = SocketAddr::from_abstract_name(name.as_bytes())
        .and_then(|address| UnixDatagram::bind_addr(&address));
    match claimed {
        Ok(socket) => Ok(InstanceLock { _socket: socket }),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Err(Failure::AlreadyRunning {
                device: device.to_owned(),
            })
        }
        Err(source) => Err(Failure::File {
            tried: format!("claim the socket name @{name}"),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_one_daemon_at_a_time() {
        let device = format!("test.{}", std::process::id());
        let first = claim(&device).unwrap();
        assert!(matches!(
            claim(&device),
            Err(Failure::AlreadyRunning { .. })
        ));
        assert!(claim("another device").is_ok());
        drop(first);
        assert!(claim(&device).is_ok());
    }
}
