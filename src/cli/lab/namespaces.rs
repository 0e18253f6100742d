//! Whether this machine lets us make namespaces and TUN devices in them.

use std::fs::File;
use std::io::ErrorKind;

use crate::sys::netns;
use crate::testbed::available;

const CLONE_DEVICE: &str = "/dev/net/tun";

/// What is missing, for a person, and the exit status for it.
pub(crate) struct Refused {
    pub(crate) message: String,
    pub(crate) status: u8,
}

/// Makes sure that namespaces can be made, in a user namespace of our own where that is what
/// it takes. Must run before any thread is started: a user namespace needs that.
pub(crate) fn permitted() -> Result<(), Refused> {
    let no_permission = |message| Refused {
        message,
        status: crate::cli::NO_PERMISSION,
    };
    match File::options().read(true).write(true).open(CLONE_DEVICE) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(no_permission(format!(
                "no permission to open {CLONE_DEVICE}; run as root, or chmod 0666 it"
            )));
        }
        Err(error) => {
            return Err(Refused {
                message: format!(
                    "{CLONE_DEVICE}: {error}; load the tun module (modprobe tun), or in a \
                     container pass the device in (docker run --device {CLONE_DEVICE})"
                ),
                status: crate::cli::NO_DEVICE,
            });
        }
    }
    if available().is_ok() {
        return Ok(());
    }
    netns::unshare_user().map_err(|error| {
        no_permission(format!(
            "no permission to make network namespaces, and none to make a user namespace for that \
             ({error}); run as root, or allow user namespaces (sysctl user.max_user_namespaces, \
             kernel.apparmor_restrict_unprivileged_userns)"
        ))
    })?;
    available().map_err(no_permission)
}
