//! The machine itself: TUN, capabilities, kernel.

use std::io;

use super::{Finding, Outcome};
use crate::sys::kernel::Version;

/// What opening `/dev/net/tun` gave.
#[must_use]
pub fn tun(opened: &io::Result<()>) -> Finding {
    let Err(error) = opened else {
        return Finding::ok("tun", "/dev/net/tun opens");
    };
    let (cause, remedy) = match error.kind() {
        io::ErrorKind::NotFound => (
            "there is no TUN device file: module tun is not loaded, or the container lacks it",
            "modprobe tun; in a container: --device /dev/net/tun",
        ),
        io::ErrorKind::PermissionDenied => (
            "this process may not open the TUN device file",
            "run as root, or: chmod 0666 /dev/net/tun; in a container: --device /dev/net/tun",
        ),
        _ => ("the kernel has no working TUN driver", "modprobe tun"),
    };
    let seen = format!("opening /dev/net/tun: {error}");
    Finding::new("tun", Outcome::Error, seen, cause, remedy)
}

/// Whether this process holds `CAP_NET_ADMIN` and `CAP_NET_RAW`.
#[must_use]
pub fn capabilities(admin: Result<bool, &str>, raw: Result<bool, &str>) -> Finding {
    let (admin, raw) = match (admin, raw) {
        (Ok(admin), Ok(raw)) => (admin, raw),
        (Err(error), _) | (_, Err(error)) => {
            let seen = format!("reading the capabilities: {error}");
            return Finding::new("capabilities", Outcome::Skipped, seen, "", "");
        }
    };
    let lacking: Vec<_> = [(admin, "CAP_NET_ADMIN"), (raw, "CAP_NET_RAW")]
        .into_iter()
        .filter_map(|(held, name)| (!held).then_some(name))
        .collect();
    if lacking.is_empty() {
        return Finding::ok("capabilities", "CAP_NET_ADMIN and CAP_NET_RAW are held");
    }
    Finding::new(
        "capabilities",
        Outcome::Error,
        format!("without {}", lacking.join(" and ")),
        "device, routes and firewall rules cannot be made without them",
        "run as root; in a container: --cap-add NET_ADMIN --cap-add NET_RAW",
    )
}

/// Known faults of this kernel.
#[must_use]
pub fn kernel(Version(major, minor, patch): Version) -> Finding {
    let seen = format!("Linux {major}.{minor}.{patch}");
    let cause = match (major, minor, patch) {
        (6, 6, 44) | (6, 1, 103) | (6, 10, _) => {
            "some writes of joined packets to a TUN device fail with EINVAL"
        }
        (7, 0, _) | (7, 1, 0..=4) => "UDP segmentation offload can corrupt packets",
        _ if (major, minor) < (5, 12) => "UDP receive offload is missing or unreliable: slower",
        _ if (major, minor, patch) < (6, 8, 5) => {
            "coalesced UDP inside a tunnel can be dropped on receipt"
        }
        _ => return Finding::ok("kernel", seen),
    };
    let remedy = "install a newer kernel of the distribution, and reboot";
    Finding::new("kernel", Outcome::Warning, seen, cause, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tun_device_is_an_error_with_its_remedy() {
        let finding = tun(&Err(io::ErrorKind::NotFound.into()));
        assert_eq!(finding.status, Outcome::Error);
        assert!(finding.remedy.contains("modprobe tun"));
        assert_eq!(tun(&Ok(())).status, Outcome::Ok);
    }

    #[test]
    fn the_lacking_capability_is_named() {
        let finding = capabilities(Ok(true), Ok(false));
        assert_eq!(finding.status, Outcome::Error);
        assert_eq!(finding.seen, "without CAP_NET_RAW");
        assert_eq!(capabilities(Ok(true), Ok(true)).status, Outcome::Ok);
        assert_eq!(capabilities(Err("no"), Ok(true)).status, Outcome::Skipped);
    }

    #[test]
    fn kernels_with_known_faults_are_warned_of() {
        for bad in [(6, 6, 44), (6, 1, 103), (7, 1, 4), (5, 10, 0), (6, 8, 4)] {
            let finding = kernel(Version(bad.0, bad.1, bad.2));
            assert_eq!(finding.status, Outcome::Warning, "{bad:?}");
        }
        for good in [(6, 8, 5), (6, 12, 0), (7, 1, 5)] {
            let finding = kernel(Version(good.0, good.1, good.2));
            assert_eq!(finding.status, Outcome::Ok, "{good:?}");
        }
    }
}
