//! A network namespace with a name for messages, and changes in it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::host::netlink::{Netlink, NetlinkError};
use crate::sys::netns::Namespace;

/// Why the testbed could not be set up, or traffic could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum TestbedError {
    /// A system call failed.
    #[error("could not {what} in {place}: {source}")]
    Io {
        /// The operation.
        what: String,
        /// The host or container.
        place: String,
        /// The system's error.
        source: io::Error,
    },
    /// A netlink request failed.
    #[error("in {place}: {source}")]
    Netlink {
        /// The host or container.
        place: String,
        /// The operation and the kernel's error.
        source: NetlinkError,
    },
    /// The request cannot be carried out.
    #[error("{0}")]
    Request(String),
    /// Time ran out.
    #[error("{what} was not done after {after:?}")]
    Deadline {
        /// The operation.
        what: String,
        /// Its time limit.
        after: Duration,
    },
}

/// A host, a container or a switch: a network namespace of its own.
///
/// The kernel removes it, with all devices in it, once this value and its clones are dropped
/// and no process runs in it.
#[derive(Debug, Clone)]
pub struct Node {
    name: String,
    namespace: Namespace,
}

impl Node {
    /// Creates a node whose only device is `lo`, which is up.
    ///
    /// # Errors
    ///
    /// If namespaces cannot be created; see [`available`].
    pub fn new(name: impl Into<String>) -> Result<Self, TestbedError> {
        let name = name.into();
        let namespace = Namespace::new().map_err(|source| TestbedError::Io {
            what: "create a network namespace".into(),
            place: name.clone(),
            source,
        })?;
        let node = Self { name, namespace };
        node.netlink(async |netlink| {
            let lo = netlink.expect_link("lo").await?;
            netlink.set_up(lo.index, true).await
        })?;
        Ok(node)
    }

    /// The name in messages; the kernel does not know it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Runs `work` on a thread in the namespace, with a tokio runtime of that one thread.
    ///
    /// # Errors
    ///
    /// If the thread or the runtime cannot be started.
    pub fn block_on<T, F>(&self, work: F) -> Result<T, TestbedError>
    where
        F: AsyncFnOnce() -> T + Send,
        T: Send,
    {
        let result = self.namespace.try_run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            Ok(runtime.block_on(work()))
        });
        result.map_err(|source| self.io_error("start a thread", source))
    }

    /// Runs `work` with a netlink connection of the namespace.
    ///
    /// # Errors
    ///
    /// Those of `work`, with this node's name.
    pub fn netlink<T, F>(&self, work: F) -> Result<T, TestbedError>
    where
        F: AsyncFnOnce(&Netlink) -> Result<T, NetlinkError> + Send,
        T: Send,
    {
        let result = self.block_on(async || {
            let netlink = Netlink::connect()?;
            work(&netlink).await
        })?;
        result.map_err(|source| TestbedError::Netlink {
            place: self.name.clone(),
            source,
        })
    }

    /// Writes a sysctl of the namespace, named as under `/proc/sys`:
    /// `net/ipv4/ip_forward`.
    ///
    /// # Errors
    ///
    /// If it does not exist, or `/proc/sys` is mounted read-only.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<(), TestbedError> {
        let path = Path::new("/proc/sys").join(name);
        // Which namespace's value the file shows depends on the thread that opens it.
        let result = self.namespace.try_run(|| fs::write(path, value));
        result
            .map_err(|source| self.io_error(format!("write {value} to the sysctl {name}"), source))
    }

    pub(super) fn io_error(&self, what: impl Into<String>, source: io::Error) -> TestbedError {
        TestbedError::Io {
            what: what.into(),
            place: self.name.clone(),
            source,
        }
    }
}

/// Whether namespaces and devices can be created here.
///
/// # Errors
///
/// Why not, and the remedy.
pub fn available() -> Result<(), String> {
    const REMEDY: &str = "run it as root (it needs CAP_SYS_ADMIN and CAP_NET_ADMIN), or inside \
                          a user namespace: unshare --user --map-root-user --net";
    let describe = |error: TestbedError| format!("{error}; {REMEDY}");
    let here = Node::new("testbed").map_err(describe)?;
    let there = Node::new("testbed peer").map_err(describe)?;
    here.netlink(async |netlink| {
        use std::os::fd::AsFd;
        let peer = there.namespace.as_fd();
        netlink.create_veth("eth0", "eth0", peer).await
    })
    .map_err(describe)
}
