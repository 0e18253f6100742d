//! Errors of netlink requests.

use std::io;

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The netlink socket could not be opened.
    #[error("opening a netlink socket failed: {0}")]
    Open(#[source] io::Error),
    /// The kernel refused, or the connection broke.
    #[error("could not {operation}: {source}{}", remedy(.source))]
    Request {
        /// The operation and its object: `set the MTU of link 5 to 1450`.
        operation: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// An object that must exist does not.
    #[error("there is no {0}")]
    Missing(String),
}

impl NetlinkError {
    /// The kernel's error number, if it sent one.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Open(source) | Self::Request { source, .. } => source.raw_os_error(),
            Self::Missing(_) => None,
        }
    }

    /// Whether the object to be created exists already (`EEXIST`).
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Whether there is no such device, address, route or neighbour.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Missing(_))
            || matches!(
                self.errno(),
                Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL)
            )
    }

    pub(super) fn request(operation: String, error: rtnetlink::Error) -> Self {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            rtnetlink::Error::RequestFailed => io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the netlink connection is closed",
            ),
            other => io::Error::other(other),
        };
        Self::Request { operation, source }
    }
}

fn remedy(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "; this needs CAP_NET_ADMIN: run as root or grant the capability"
        }
        Some(libc::EOPNOTSUPP) => "; this kernel has no support for it built in or loaded",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: i32) -> NetlinkError {
        NetlinkError::Request {
            operation: "set the MTU of link 5 to 1450".into(),
            source: io::Error::from_raw_os_error(errno),
        }
    }

    #[test]
    fn text_names_the_operation_and_the_remedy() {
        let text = refused(libc::EPERM).to_string();
        assert!(text.starts_with("could not set the MTU of link 5 to 1450: Operation not"));
        assert!(text.contains("CAP_NET_ADMIN"), "{text}");
        assert!(!refused(libc::EINVAL).to_string().contains("CAP_NET_ADMIN"));
    }

    #[test]
    fn exists_and_missing_are_distinguished() {
        assert!(refused(libc::EEXIST).is_exists());
        assert!(!refused(libc::EEXIST).is_missing());
        assert!(refused(libc::ENODEV).is_missing());
        assert!(NetlinkError::Missing("link flannel.1".into()).is_missing());
    }
}
