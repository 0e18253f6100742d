//! Why the daemon ended, and its exit status.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

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
pub(crate) enum Failure {
    /// The datastore's options cannot work.
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
    Config { place: String, source: ConfigError },
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    #[error("failed to acquire lease: {0}")]
    Acquire(#[from] AcquireError),
    /// Another daemon serves this device in this network namespace.
    #[error(
        "another uvxlan daemon serves {device} in this network namespace; stop it first, or give \
         this network its own VNI and port"
    )]
    AlreadyRunning { device: String },
    /// A privilege is missing.
    #[error(
        "this process does not have {name}, {purpose}: run as root, grant the capability (systemd: \
         AmbientCapabilities={name}, docker: --cap-add), or start it in a user namespace of its own"
    )]
    Capability {
        name: &'static str,
        purpose: &'static str,
    },
    /// Another process or device receives on the tunnel's port.
    #[error(
        "UDP port {port} is in use by {holder}: stop that, or give this network another Port in \
         its config; 'ip -d link show type vxlan' lists the kernel's vxlan devices"
    )]
    PortHeld { port: u16, holder: String },
    /// The tunnel's port cannot be bound.
    #[error(
        "cannot receive on UDP port {port}: {source}; a port below 1024 needs \
         CAP_NET_BIND_SERVICE, or give this network another Port in its config"
    )]
    Port { port: u16, source: io::Error },
    /// A file that the daemon must write cannot be written.
    #[error(
        "cannot write the {what} {}: {}: {source}; make that folder writable, or choose another \
         with --{flag}", path.display(), folder.display()
    )]
    Unwritable {
        what: &'static str,
        path: PathBuf,
        /// The folder that refuses.
        folder: PathBuf,
        /// The flag that sets the path.
        flag: &'static str,
        source: io::Error,
    },
    /// Several requirements are missing.
    #[error("{} requirements are missing, each logged above; nothing was changed", .0.len())]
    Several(Vec<Self>),
    #[error(transparent)]
    Tun(#[from] TunError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The packet loop did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("cannot {tried}: {source}")]
    File { tried: String, source: io::Error },
    #[error(
        "cannot listen for health checks on {address}: {source}; choose another with --healthz-ip and --healthz-port"
    )]
    Health { address: String, source: io::Error },
    /// The interface's MTU leaves no room for a tunnel.
    #[error(
        "interface {interface} ({address}) has MTU {mtu}, too small for a tunnel: it takes at least \
         626 (576 plus 50 for the encapsulation)"
    )]
    Mtu {
        interface: String,
        address: Ipv4Addr,
        mtu: u32,
    },
    #[error("cannot start the control side: {0}")]
    Runtime(io::Error),
}

impl Failure {
    /// The exit status, as of `sysexits.h`; 1 for what has none there.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Unreachable(_) => 69,
            Self::Tun(TunError::Permission { .. }) | Self::Capability { .. } => 77,
            Self::Tun(_) => 71,
            Self::Netlink(error) | Self::Link(LinkError::Netlink(error))
                if is_permission(error) =>
            {
                77
            }
            Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => 77,
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
