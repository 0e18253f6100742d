//! Why the daemon ended, and with which exit status.

use std::net::Ipv4Addr;

use crate::dataplane::StartError;
use crate::host::interface::InterfaceError;
use crate::host::link::LinkError;
use crate::host::netlink::NetlinkError;
use crate::subnet::config::ConfigError;
use crate::subnet::manager::AcquireError;
use crate::subnet::store::StoreError;
use crate::subnet::store::etcd::EtcdOptionsError;
use crate::sys::tun::TunError;

/// What ended the daemon. Each message names the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Options of the datastore that cannot work.
    #[error(transparent)]
    Options(#[from] EtcdOptionsError),
    /// The datastore did not answer, and `--fail-fast` was given.
    #[error("{0}; without --fail-fast the daemon would keep trying")]
    Unreachable(StoreError),
    /// The datastore refused for good (authentication, certificates).
    #[error(transparent)]
    Store(StoreError),
    /// The network config cannot be used.
    #[error("network config in {place}: {source}")]
    Config {
        /// The store and key.
        place: String,
        /// What is wrong.
        source: ConfigError,
    },
    /// No interface for the tunnel.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// No subnet was leased.
    #[error("failed to acquire lease: {0}")]
    Acquire(#[from] AcquireError),
    /// Another daemon serves this device in this network namespace.
    #[error(
        "another uvxlan daemon serves {device} in this network namespace; stop it first, or give \
         this network its own VNI and port"
    )]
    AlreadyRunning {
        /// The device.
        device: String,
    },
    /// A privilege is missing.
    #[error(
        "this process lacks {name}, {purpose}: run as root, give it the capability (systemd: \
         AmbientCapabilities={name}, docker: --cap-add), or start it in a user namespace of its own"
    )]
    Capability {
        /// The capability.
        name: &'static str,
        /// What it is for.
        purpose: &'static str,
    },
    /// Somebody else receives on the tunnel's port.
    #[error(
        "UDP port {port} is in use by {holder}: stop that, or give this network another Port in \
         its config; a vxlan device of the kernel is found by 'ip -d link show type vxlan'"
    )]
    PortHeld {
        /// The port.
        port: u16,
        /// Who has it.
        holder: String,
    },
    /// The tunnel's port cannot be had.
    #[error(
        "cannot receive on UDP port {port}: {source}; a port below 1024 needs \
         CAP_NET_BIND_SERVICE, or give this network another Port in its config"
    )]
    Port {
        /// The port.
        port: u16,
        /// What came back.
        source: std::io::Error,
    },
    /// A file that the daemon must write cannot be.
    #[error(
        "cannot write the {what} {}: {} says {source}; make that folder writable, or choose \
         another with --{flag}", path.display(), folder.display()
    )]
    Unwritable {
        /// What it is.
        what: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// The folder in its way.
        folder: std::path::PathBuf,
        /// The flag that names it.
        flag: &'static str,
        /// What came back.
        source: std::io::Error,
    },
    /// Several things are missing.
    #[error("this host lacks {} things, each named above; nothing was changed", .0.len())]
    Several(Vec<Self>),
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// Setting up the device.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Talking to the kernel.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Starting the packet loop.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A file.
    #[error("cannot {tried}: {source}")]
    File {
        /// What was tried.
        tried: String,
        /// What came back.
        source: std::io::Error,
    },
    /// The health endpoint.
    #[error(
        "cannot listen for health checks on {address}: {source}; choose another with --healthz-ip and --healthz-port"
    )]
    Health {
        /// Where.
        address: String,
        /// What came back.
        source: std::io::Error,
    },
    /// The MTU of the interface leaves no room for a tunnel.
    #[error(
        "interface {interface} ({address}) has MTU {mtu}, too small for a tunnel: at least 626 \
         (576 and 50 for the encapsulation)"
    )]
    Mtu {
        /// The interface.
        interface: String,
        /// Its address.
        address: Ipv4Addr,
        /// Its MTU.
        mtu: u32,
    },
    /// The runtime of the control side.
    #[error("cannot start the control side: {0}")]
    Runtime(std::io::Error),
}

/// Exit statuses of `sysexits.h`, and 1 for what has none.
impl Failure {
    /// The exit status for a service manager.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Unreachable(_) => 69,
            Self::Tun(TunError::Permission { .. }) | Self::Capability { .. } => 77,
            Self::Tun(_) => 71,
            Self::Netlink(error) | Self::Link(LinkError::Netlink(error))
                if is_permission(error) =>
            {
                77
            }
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                77
            }
            Self::File { .. } | Self::Unwritable { .. } => 73,
            Self::Several(all) => all.first().map_or(1, Self::exit_status),
            Self::Options(_)
            | Self::Config { .. }
            | Self::AlreadyRunning { .. }
            | Self::Acquire(AcquireError::AddressInUse { .. } | AcquireError::Renumber { .. })
            | Self::Link(LinkError::NameTaken { .. })
            | Self::Mtu { .. } => 78,
            _ => 1,
        }
    }
}

fn is_permission(error: &NetlinkError) -> bool {
    matches!(
        error.errno().map(i32::abs),
        Some(libc::EPERM | libc::EACCES)
    )
}
