//! UDP sockets with batched system calls (recvmmsg, sendmmsg), and the control messages for
//! segment sizes (UDP_GRO, UDP_SEGMENT), type of service and interface.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

mod receive;
mod send;

pub use receive::{DatagramInfo, ReceiveBatch};
pub use send::{MessageHead, SendBatch, Sending};

use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

/// `IP_PMTUDISC_OMIT`: never set DF, ignore path MTU discovery, fragment to the device's MTU,
/// as the kernel's vxlan does (`df unset`).
const PMTU_DISCOVERY_OMIT: libc::c_int = 5;
/// `IP_PMTUDISC_DONT`, for kernels before 3.15.
const PMTU_DISCOVERY_DONT: libc::c_int = 0;

/// `IP_PMTUDISC_PROBE`: always set DF, ignore path MTU discovery.
const PMTU_DISCOVERY_PROBE: libc::c_int = 3;

/// Requested receive buffer: a burst of 64 KiB trains must fit while a worker is busy.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;
/// Requested send buffer.
const SEND_BUFFER: libc::c_int = 4 << 20;

/// Space for the control messages of one datagram: type of service, segment size, and
/// `struct in_pktinfo`.
const CONTROL_LEN: usize = 96;

/// `SO_MEMINFO` (`include/uapi/asm-generic/socket.h`, since Linux 4.12): memory and drops of a
/// socket.
const SO_MEMINFO: libc::c_int = 55;
/// Number of its values, and the index of the drops (`enum` in `linux/sock_diag.h`).
const MEMINFO_LEN: usize = 9;
const MEMINFO_DROPS: usize = 8;

/// One instruction of classic BPF: `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    /// Instructions to skip if a comparison holds.
    pub(crate) jump_true: u8,
    /// Instructions to skip if it does not hold.
    pub(crate) jump_false: u8,
    pub(crate) k: u32,
}

/// A non-blocking UDP socket.
#[derive(Debug)]
pub struct UdpSocket(Socket);

impl UdpSocket {
    /// A socket that receives, one of several on the same port. The kernel spreads the remote
    /// addresses and ports over them, and keeps each on one socket.
    ///
    /// # Errors
    /// `AddrInUse` if another process or the kernel's vxlan holds the port.
    pub fn receiver(address: SocketAddrV4) -> io::Result<Self> {
        let socket = Self::open()?;
        socket.0.set_reuse_port(true)?;
        socket.option(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        socket.buffer(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER)?;
        socket.0.bind(&SockAddr::from(address))?;
        Ok(socket)
    }

    /// A socket that only sends, from this address and a port that the kernel picks from
    /// `ip_local_port_range`.
    ///
    /// # Errors
    /// `AddrNotAvailable` if the address is not this host's.
    pub fn sender(address: Ipv4Addr) -> io::Result<Self> {
        let socket = Self::open()?;
        socket.buffer(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER)?;
        if socket
            .option(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, PMTU_DISCOVERY_OMIT)
            .is_err()
        {
            socket.option(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, PMTU_DISCOVERY_DONT)?;
        }
        socket.discard_received();
        socket
            .0
            .bind(&SockAddr::from(SocketAddrV4::new(address, 0)))?;
        Ok(socket)
    }

    /// Reports the interface of each received datagram (`IP_PKTINFO`).
    pub(crate) fn report_interface(&self) -> io::Result<()> {
        self.option(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
    }

    /// Has the kernel drop all datagrams to this socket, because nobody reads them.
    fn discard_received(&self) {
        // `BPF_RET | BPF_K` with 0: accept no byte of any datagram.
        const DROP_ALL: Instruction = Instruction {
            code: 0x06,
            jump_true: 0,
            jump_false: 0,
            k: 0,
        };
        // If the filter is refused, the smallest buffer holds a datagram or two.
        let _ = self.set_filter(&[DROP_ALL]);
        let _ = self.0.set_recv_buffer_size(0);
    }

    /// A socket that only sends, from this address and with DF. A datagram that exceeds the
    /// path MTU is dropped on the path, or refused here with `EMSGSIZE`.
    ///
    /// # Errors
    /// `AddrNotAvailable` if the address is not this host's.
    pub fn unfragmented_sender(address: Ipv4Addr) -> io::Result<Self> {
        let socket = Self::open()?;
        set_dont_fragment(&socket)?;
        socket.discard_received();
        socket
            .0
            .bind(&SockAddr::from(SocketAddrV4::new(address, 0)))?;
        Ok(socket)
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` if the send buffer is full.
    pub fn send_to(&self, datagram: &[u8], destination: SocketAddrV4) -> io::Result<()> {
        self.0.send_to(datagram, &SockAddr::from(destination))?;
        Ok(())
    }

    fn open() -> io::Result<Self> {
        let socket = Socket::new(
            Domain::IPV4,
            Type::DGRAM.nonblocking().cloexec(),
            Some(Protocol::UDP),
        )?;
        Ok(Self(socket))
    }

    /// Has the kernel join received datagrams of a flow (`UDP_GRO`, correct since Linux 5.12).
    /// Returns whether it supports that.
    pub fn enable_gro(&self) -> bool {
        self.option(libc::SOL_UDP, libc::UDP_GRO, 1).is_ok()
    }

    /// Whether the kernel can segment on sending (`UDP_SEGMENT`, since Linux 4.18).
    pub(crate) fn can_segment(&self) -> bool {
        self.option(libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
    }

    /// Filters datagrams before they are queued. Replaces an earlier program atomically; if the
    /// new one is refused, the earlier one stays.
    ///
    /// # Errors
    /// `ENOMEM` if it is longer than `net.core.optmem_max` allows.
    pub(crate) fn set_filter(&self, program: &[Instruction]) -> io::Result<()> {
        let program: Vec<_> = program
            .iter()
            .map(|one| SockFilter::new(one.code, one.jump_true, one.jump_false, one.k))
            .collect();
        self.0.attach_filter(&program)
    }

    /// Accepts every datagram again. Fails with `ENOENT` if there is no program.
    pub(crate) fn remove_filter(&self) -> io::Result<()> {
        self.0.detach_filter()
    }

    /// Datagrams that the kernel dropped at this socket because the buffer was full or the
    /// filter refused them. It wraps. 0 on kernels before 4.12, which do not report it.
    pub(crate) fn drops(&self) -> u32 {
        let mut values = [0u32; MEMINFO_LEN];
        let mut length = mem::size_of_val(&values) as libc::socklen_t;
        // SAFETY: the descriptor is open; `values` and `length` live through the call, and
        // `length` is the size of `values`, of which the kernel writes no more.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_MEMINFO,
                values.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result < 0 { 0 } else { values[MEMINFO_DROPS] }
    }

    /// The address that the socket is bound to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_address(&self) -> io::Result<SocketAddrV4> {
        let address = self.0.local_addr()?;
        address
            .as_socket_ipv4()
            .ok_or_else(|| io::Error::other("not an IPv4 socket"))
    }

    /// With `CAP_NET_ADMIN`, the buffer may exceed the limit of the host.
    fn buffer(
        &self,
        forced: libc::c_int,
        limited: libc::c_int,
        bytes: libc::c_int,
    ) -> io::Result<()> {
        self.option(libc::SOL_SOCKET, forced, bytes)
            .or_else(|_| self.option(libc::SOL_SOCKET, limited, bytes))
    }

    fn option(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        set_option(self.0.as_fd(), level, name, value)
    }
}

/// Sets DF on all packets of a socket, whatever path MTU discovery has learned.
///
/// # Errors
/// The kernel's.
pub fn set_dont_fragment(socket: &impl AsFd) -> io::Result<()> {
    set_option(
        socket.as_fd(),
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        PMTU_DISCOVERY_PROBE,
    )
}

fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the descriptor is open; `value` lives through the call and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Queries path MTUs. The socket is created in advance, because a packet thread may not create
/// one.
#[derive(Debug)]
pub(crate) struct PathMtuSocket(UdpSocket);

impl PathMtuSocket {
    /// For packets from this address.
    pub(crate) fn new(source: Ipv4Addr) -> io::Result<Self> {
        let socket = UdpSocket::open()?;
        socket.discard_received();
        socket
            .0
            .bind(&SockAddr::from(SocketAddrV4::new(source, 0)))?;
        Ok(Self(socket))
    }

    /// The largest IP packet in bytes that the path to a destination takes, according to
    /// routing table and path MTU discovery (`IP_MTU`). Fails if there is no route.
    pub(crate) fn get(&self, destination: SocketAddrV4) -> io::Result<u16> {
        // `connect` repeats the route lookup.
        let socket = &self.0.0;
        socket.connect(&SockAddr::from(destination))?;
        let mut value: libc::c_int = 0;
        let mut length = mem::size_of_val(&value) as libc::socklen_t;
        // SAFETY: the descriptor is open; `value` and `length` live through the call, and
        // `length` is the size of `value`.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_MTU,
                (&raw mut value).cast(),
                &raw mut length,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(u16::try_from(value).unwrap_or(u16::MAX))
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Space for control messages, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

const fn empty_address() -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: 0 },
        sin_zero: [0; 8],
    }
}

fn empty_message() -> libc::mmsghdr {
    // SAFETY: all-zero bytes are a valid `mmsghdr`: null pointers and zero lengths.
    unsafe { mem::zeroed() }
}

/// Length of a `cmsghdr`, and the alignment of the data behind it.
const CONTROL_HEADER: usize = mem::size_of::<libc::cmsghdr>();
const CONTROL_ALIGN: usize = mem::size_of::<usize>();

/// Iterates over control messages (`CMSG_NXTHDR` without pointers): level, type, data.
fn control_messages(mut bytes: &[u8]) -> impl Iterator<Item = (i32, i32, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from_ne_bytes(*bytes.first_chunk()?);
        let word = |at: usize| Some(i32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        let level = word(CONTROL_ALIGN)?;
        let kind = word(CONTROL_ALIGN + 4)?;
        let data = bytes.get(CONTROL_HEADER..length)?;
        bytes = bytes
            .get(length.next_multiple_of(CONTROL_ALIGN)..)
            .unwrap_or(&[]);
        Some((level, kind, data))
    })
}

/// Writes one control message at `at` and returns the end of it, padded.
fn put_control(bytes: &mut [u8], at: usize, level: i32, kind: i32, data: &[u8]) -> usize {
    let length = CONTROL_HEADER + data.len();
    bytes[at..at + CONTROL_ALIGN].copy_from_slice(&length.to_ne_bytes());
    bytes[at + CONTROL_ALIGN..at + CONTROL_ALIGN + 4].copy_from_slice(&level.to_ne_bytes());
    bytes[at + CONTROL_ALIGN + 4..at + CONTROL_HEADER].copy_from_slice(&kind.to_ne_bytes());
    bytes[at + CONTROL_HEADER..at + length].copy_from_slice(data);
    at + length.next_multiple_of(CONTROL_ALIGN)
}

#[cfg(test)]
mod tests;
