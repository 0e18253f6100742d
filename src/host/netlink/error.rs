//! What netlink requests fail with.

use std::io;

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("opening a netlink socket failed: {0}")]
    Open(#[source] io::Error),
    /// The kernel refused, or the connection broke.
    #[error("could not {operation}: {source}{}", remedy(.source))]
    Request {
        /// What was tried, on which device: `set the MTU of link 5 to 1450`.
        operation: String,
        /// What came back.
        source: io::Error,
    },
    /// What should be there is not.
    #[error("there is no {0}")]
    Missing(String),
}

impl NetlinkError {
    /// The kernel's error number, where it gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Open(source) | Self::Request { source, .. } => source.raw_os_error(),
            Self::Missing(_) => None,
        }
    }

    /// Whether the thing to be made was there already (`EEXIST`).
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Whether what was named is not there: no such device, address, route or neighbour.
    #[must_use]
    pub fn is_missing(&self) -> bool {
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
    fn text_says_what_was_tried_and_what_helps() {
        let text = refused(libc::EPERM).to_string();
        assert!(text.starts_with("could not set the MTU of link 5 to 1450: Operation not"));
        assert!(text.contains("CAP_NET_ADMIN"), "{text}");
        assert!(!refused(libc::EINVAL).to_string().contains("CAP_NET_ADMIN"));
    }

    #[test]
    fn kinds_are_told_apart() {
        assert!(refused(libc::EEXIST).is_exists());
        assert!(!refused(libc::EEXIST).is_missing());
        assert!(refused(libc::ENODEV).is_missing());
        assert!(NetlinkError::Missing("link flannel.1".into()).is_missing());
    }
}
