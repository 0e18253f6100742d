//! Opens TUN devices with the features that this kernel has.
//!
//! Constants and rules are those of `include/uapi/linux/if_tun.h` and `drivers/net/tun.c`.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

const CLONE_DEVICE: &str = "/dev/net/tun";

const IFF_TUN: i32 = 0x0001;
const IFF_MULTI_QUEUE: i32 = 0x0100;
const IFF_NO_PI: i32 = 0x1000;
const IFF_VNET_HDR: i32 = 0x4000;

const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETPERSIST: u64 = 0x4004_54cb;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;

const TUN_F_CSUM: u64 = 0x01;
const TUN_F_TSO4: u64 = 0x02;
const TUN_F_TSO6: u64 = 0x04;
const TUN_F_TSO_ECN: u64 = 0x08;
const TUN_F_USO4: u64 = 0x20;
const TUN_F_USO6: u64 = 0x40;

/// Length of the virtio-net header before each packet of a device with [`Tun::vnet_hdr`].
pub const VNET_HDR_LEN: usize = 10;

/// Why a TUN device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// `/dev/net/tun` is missing.
    #[error(
        "{CLONE_DEVICE} is missing: load the tun module (modprobe tun), or in a container pass \
         the device in (docker run --device /dev/net/tun)"
    )]
    NoCloneDevice,
    /// No permission to open `/dev/net/tun`, or to create the device.
    #[error(
        "no permission to {tried} ({source}): run as root or with CAP_NET_ADMIN, and with access \
         to {CLONE_DEVICE}"
    )]
    Permission {
        /// What was tried.
        tried: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// Not a valid device name.
    #[error("{0:?} cannot be a device name: it needs 1 to 15 bytes without blank, slash or NUL")]
    Name(String),
    /// The device exists and is in use by another process, or is of another kind.
    #[error(
        "device {name} exists and cannot be attached ({source}): another process holds it, or it \
         is of another kind; see `ip -d link show {name}`"
    )]
    Busy {
        /// Name of the device.
        name: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// Any other error.
    #[error("cannot {tried}: {source}")]
    Other {
        /// What was tried.
        tried: String,
        /// The error of the kernel.
        source: io::Error,
    },
}

/// The wanted device. Features that the kernel does not have are left out.
#[derive(Debug, Clone)]
pub struct TunOptions {
    /// Device name, like `flannel.1`.
    pub name: String,
    /// Number of queues, one per worker. Kernels without `IFF_MULTI_QUEUE` (before 3.8) have one.
    pub queues: usize,
    /// Which packets may be read unsegmented and without checksum.
    pub offload: TunOffload,
}

/// Offloads of a TUN device, in steps that kernels support.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TunOffload {
    /// Single packets with complete checksums.
    None,
    /// TCP super-packets and partial checksums.
    Tcp,
    /// UDP super-packets as well (Linux 6.2 and later).
    TcpUdp,
}

impl TunOffload {
    const fn bits(self) -> u64 {
        let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
        match self {
            Self::None => 0,
            Self::Tcp => tcp,
            Self::TcpUdp => tcp | TUN_F_USO4 | TUN_F_USO6,
        }
    }
}

/// An open TUN device.
#[derive(Debug)]
pub struct Tun {
    /// Its name.
    pub name: String,
    /// Its queues.
    pub queues: Vec<TunQueue>,
    /// Whether each packet has a virtio-net header before it.
    pub vnet_hdr: bool,
    /// The wanted offloads that the kernel supports: these apply to reading.
    pub offload: TunOffload,
    /// All offloads that the kernel supports: these super-packets can be written.
    pub supported: TunOffload,
}

/// One queue of a TUN device, not blocking. The kernel keeps a flow on one queue.
#[derive(Debug)]
pub struct TunQueue(File);

/// Opens the device, or attaches to a persistent one of this name.
///
/// # Errors
/// [`TunError`] names the remedy.
pub fn open(options: &TunOptions) -> Result<Tun, TunError> {
    let name = device_name(&options.name)?;
    let shapes = [
        IFF_MULTI_QUEUE | IFF_VNET_HDR,
        IFF_MULTI_QUEUE,
        IFF_VNET_HDR,
        0,
    ];
    let mut refused = None;
    for shape in shapes {
        match attach(&options.name, &name, shape) {
            Ok(first) => return finish(options, &name, shape, first),
            Err(TunError::Busy { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                refused = Some(source);
            }
            Err(other) => return Err(other),
        }
    }
    let source = refused.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL));
    Err(TunError::Busy {
        name: options.name.clone(),
        source,
    })
}

fn finish(
    options: &TunOptions,
    name: &[u8; libc::IFNAMSIZ],
    shape: i32,
    first: File,
) -> Result<Tun, TunError> {
    let vnet_hdr = shape & IFF_VNET_HDR != 0;
    let mut files = vec![first];
    if shape & IFF_MULTI_QUEUE != 0 {
        for _ in 1..options.queues.max(1) {
            files.push(attach(&options.name, name, shape)?);
        }
    }
    let (mut offload, mut supported) = (TunOffload::None, TunOffload::None);
    if vnet_hdr {
        let mut length = VNET_HDR_LEN as libc::c_int;
        ioctl_pointer(&files[0], TUNSETVNETHDRSZ, &mut length).map_err(|source| {
            TunError::Other {
                tried: format!("set the packet header length of {}", options.name),
                source,
            }
        })?;
        supported = set_offload(&files[0], TunOffload::TcpUdp);
        offload = set_offload(&files[0], options.offload);
    }
    Ok(Tun {
        name: options.name.clone(),
        queues: files.into_iter().map(TunQueue).collect(),
        vnet_hdr,
        offload,
        supported,
    })
}

/// Tries the largest set first: a kernel that does not know one bit refuses the whole set.
fn set_offload(file: &File, wanted: TunOffload) -> TunOffload {
    for step in [TunOffload::TcpUdp, TunOffload::Tcp, TunOffload::None] {
        if step <= wanted && ioctl_value(file, TUNSETOFFLOAD, step.bits()).is_ok() {
            return step;
        }
    }
    TunOffload::None
}

fn attach(shown: &str, name: &[u8; libc::IFNAMSIZ], shape: i32) -> Result<File, TunError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(CLONE_DEVICE)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoCloneDevice,
            _ => refusal(format!("open {CLONE_DEVICE}"), shown, source),
        })?;
    let mut request = IfReq {
        name: *name,
        flags: (IFF_TUN | IFF_NO_PI | shape) as libc::c_short,
        padding: [0; 22],
    };
    ioctl_pointer(&file, TUNSETIFF, &mut request)
        .map_err(|source| refusal(format!("create the TUN device {shown}"), shown, source))?;
    Ok(file)
}

fn refusal(tried: String, name: &str, source: io::Error) -> TunError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TunError::Permission { tried, source },
        Some(libc::EBUSY | libc::EINVAL | libc::EEXIST) => TunError::Busy {
            name: name.to_owned(),
            source,
        },
        _ => TunError::Other { tried, source },
    }
}

fn device_name(name: &str) -> Result<[u8; libc::IFNAMSIZ], TunError> {
    let valid = (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name
            .bytes()
            .any(|b| b == 0 || b == b'/' || b.is_ascii_whitespace());
    if !valid {
        return Err(TunError::Name(name.to_owned()));
    }
    let mut bytes = [0; libc::IFNAMSIZ];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    Ok(bytes)
}

impl From<File> for TunQueue {
    /// A descriptor that was opened elsewhere, of a TUN queue or of a file in its place.
    fn from(file: File) -> Self {
        Self(file)
    }
}

impl TunQueue {
    /// Reads one packet, with its virtio-net header if the device has one. A packet longer
    /// than the buffer is truncated.
    ///
    /// # Errors
    /// `WouldBlock` if the queue is empty.
    #[inline]
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    /// Writes one packet, with its virtio-net header if the device has one. The kernel accepts
    /// all of it or nothing.
    ///
    /// # Errors
    /// `EIO` if the device is down, `EINVAL` if the kernel refuses the packet or its header.
    #[inline]
    pub fn write(&self, packet: &[u8]) -> io::Result<usize> {
        (&self.0).write(packet)
    }

    /// As [`TunQueue::write`], for a packet in several pieces.
    ///
    /// # Errors
    /// As [`TunQueue::write`].
    #[inline]
    pub fn write_gather(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.0).write_vectored(pieces)
    }

    /// Whether the device outlives this process.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_persistent(&self, persistent: bool) -> io::Result<()> {
        ioctl_value(&self.0, TUNSETPERSIST, u64::from(persistent))
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `struct ifreq`, with its union as flags and padding: 40 bytes as on 64-bit kernels; 32-bit
/// kernels read 32.
#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    padding: [u8; 22],
}

fn ioctl_pointer<T>(file: &File, request: u64, argument: &mut T) -> io::Result<()> {
    // SAFETY: the descriptor is open, and `argument` points to a live, exclusively borrowed
    // value of the type that this request reads and writes back.
    let result = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            request as libc::Ioctl,
            std::ptr::from_mut(argument),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn ioctl_value(file: &File, request: u64, argument: u64) -> io::Result<()> {
    // SAFETY: the descriptor is open, and this request takes its argument by value.
    let result = unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            request as libc::Ioctl,
            argument as libc::c_ulong,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_names_are_refused() {
        for name in ["", "a/b", "a b", "..", "sixteen-bytes-xx", "nul\0"] {
            assert!(
                matches!(device_name(name), Err(TunError::Name(_))),
                "{name:?}"
            );
        }
        assert!(
            device_name("flannel.16777215").is_err(),
            "16 bytes do not fit"
        );
        assert!(device_name("flannel.1").is_ok());
    }
}
