//! Whether this machine lets us make network namespaces, and TUN devices in them.

use std::fs::File;
use std::io::ErrorKind;

use crate::cli::{NO_DEVICE, NO_PERMISSION};
use crate::sys::netns;
use crate::testbed::available;

const CLONE_DEVICE: &str = "/dev/net/tun";

/// What is missing, for a person, and the exit status for it.
pub(crate) struct Refused {
    pub(crate) message: String,
    pub(crate) status: u8,
}

/// Makes sure that namespaces can be made, and enters a user namespace if that is necessary. To
/// be called before any thread is started, because only a single-threaded process may enter one.
pub(crate) fn require() -> Result<(), Refused> {
    let no_permission = |message| Refused {
        message,
        status: NO_PERMISSION,
    };
    if let Err(error) = File::options().read(true).write(true).open(CLONE_DEVICE) {
        return Err(match error.kind() {
            ErrorKind::PermissionDenied => no_permission(format!(
                "no permission to open {CLONE_DEVICE}; run as root, or chmod 0666 {CLONE_DEVICE}"
            )),
            _ => Refused {
                message: format!(
                    "cannot open {CLONE_DEVICE}: {error}; load the tun module (modprobe tun), or in \
                     a container pass the device in (docker run --device {CLONE_DEVICE})"
                ),
                status: NO_DEVICE,
            },
        });
    }
    if available().is_ok() {
        return Ok(());
    }
    netns::unshare_user().map_err(|error| {
        no_permission(format!(
            "no permission to make network namespaces, nor a user namespace to make them in \
             ({error}); run as root, or allow user namespaces (sysctl user.max_user_namespaces, \
             kernel.apparmor_restrict_unprivileged_userns)"
        ))
    })?;
    available().map_err(no_permission)
}
