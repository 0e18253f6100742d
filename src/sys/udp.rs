//! UDP sockets with batched system calls: recvmmsg, sendmmsg, and the control messages
//! for segment sizes (UDP_GRO, UDP_SEGMENT) and the type of service.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

mod receive;
mod send;

pub use receive::{DatagramInfo, ReceiveBatch};
pub use send::{MessageHead, SendBatch, Sending};

use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

/// `IP_PMTUDISC_OMIT`: never set DF, ignore what path MTU discovery learned, fragment to
/// the device's MTU, as the kernel's vxlan does (`df unset`).
const PMTU_DISCOVERY_OMIT: libc::c_int = 5;
/// `IP_PMTUDISC_DONT`, for kernels before 3.15.
const PMTU_DISCOVERY_DONT: libc::c_int = 0;

/// `IP_PMTUDISC_PROBE`: set DF on everything, ignore what path MTU discovery learned.
const PMTU_DISCOVERY_PROBE: libc::c_int = 3;

/// Receive buffer asked for: a burst of 64 KiB trains must fit while a worker is away.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;
/// Send buffer asked for.
const SEND_BUFFER: libc::c_int = 4 << 20;

/// Space for the control messages of one datagram: type of service, segment size, and
/// `struct in_pktinfo`.
const CONTROL_LEN: usize = 96;

/// `SO_MEMINFO` (`include/uapi/asm-generic/socket.h`, since Linux 4.12): what a socket holds.
const SO_MEMINFO: libc::c_int = 55;
/// Number of its values, and which of them counts drops (`enum` in `linux/sock_diag.h`).
const MEMINFO_LEN: usize = 9;
const MEMINFO_DROPS: usize = 8;

/// One instruction of classic BPF: `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many instructions to pass over if a comparison holds.
    pub jump_true: u8,
    /// How many if it does not.
    pub jump_false: u8,
    /// The operand.
    pub k: u32,
}

/// A UDP socket of the tunnel, not blocking.
#[derive(Debug)]
pub struct UdpSocket(Socket);

impl UdpSocket {
    /// A socket that receives tunnel datagrams, one of several on the same port: the
    /// kernel spreads remote address and port pairs over them and keeps each on one.
    ///
    /// # Errors
    /// `AddrInUse` when another process (or the kernel's vxlan) holds the port.
    pub fn receiver(address: SocketAddrV4) -> io::Result<Self> {
        let socket = Self::open()?;
        socket.0.set_reuse_port(true)?;
        socket.option(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        socket.buffer(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER)?;
        socket.0.bind(&SockAddr::from(address))?;
        Ok(socket)
    }

    /// A socket that sends tunnel datagrams from this address and a port of the kernel's
    /// choice out of `ip_local_port_range`. It receives nothing.
    ///
    /// # Errors
    /// `AddrNotAvailable` when the address is not this host's.
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

    /// Lets each datagram tell over which interface it came (`IP_PKTINFO`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn report_interface(&self) -> io::Result<()> {
        self.option(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
    }

    /// Has the kernel drop whatever is sent to this socket: it only sends, and nobody reads.
    fn discard_received(&self) {
        // `BPF_RET | BPF_K` with 0: no byte of any datagram is taken.
        const REFUSE: Instruction = Instruction {
            code: 0x06,
            jump_true: 0,
            jump_false: 0,
            k: 0,
        };
        // Where it cannot be had, the smallest buffer takes a datagram or two.
        let _ = self.set_filter(&[REFUSE]);
        let _ = self.0.set_recv_buffer_size(0);
    }

    /// A socket that sends single datagrams from this address, which are never cut on the way:
    /// what does not fit is lost, or refused here with `EMSGSIZE`. It receives nothing.
    ///
    /// # Errors
    /// `AddrNotAvailable` when the address is not this host's.
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
    /// The kernel's; `WouldBlock` where there is no room.
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

    /// Lets the kernel join datagrams of a flow (`UDP_GRO`, usable since Linux 5.12).
    /// Returns whether it does.
    pub fn enable_gro(&self) -> bool {
        self.option(libc::SOL_UDP, libc::UDP_GRO, 1).is_ok()
    }

    /// Whether the kernel can segment on sending (`UDP_SEGMENT`, since Linux 4.18).
    #[must_use]
    pub fn can_segment(&self) -> bool {
        self.option(libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
    }

    /// Lets this program judge every datagram before it is queued, in place of an earlier
    /// one, which goes on until then, and for good where the new one is refused.
    ///
    /// # Errors
    /// `ENOMEM` when it is longer than `net.core.optmem_max` allows.
    pub fn set_filter(&self, program: &[Instruction]) -> io::Result<()> {
        let program: Vec<_> = program
            .iter()
            .map(|one| SockFilter::new(one.code, one.jump_true, one.jump_false, one.k))
            .collect();
        self.0.attach_filter(&program)
    }

    /// Lets every datagram in.
    ///
    /// # Errors
    /// `ENOENT` when there is no program.
    pub fn remove_filter(&self) -> io::Result<()> {
        self.0.detach_filter()
    }

    /// Datagrams that the kernel dropped at this socket, since it was made: no room, or
    /// refused by the filter. 0 on kernels before 4.12, which do not say; it wraps.
    #[must_use]
    pub fn drops(&self) -> u32 {
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

    /// The address it is bound to.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn local_address(&self) -> io::Result<SocketAddrV4> {
        let address = self.0.local_addr()?;
        address
            .as_socket_ipv4()
            .ok_or_else(|| io::Error::other("not an IPv4 socket"))
    }

    /// With the capability the limit of the host does not count; without, it does.
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

/// Sets DF on all packets of a socket, whatever is known about their ways.
///
/// # Errors
/// The kernel's; every kernel since 2.6.22 knows it.
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

/// Asks how long a packet may be on its way to a destination. It has its socket from the
/// start: a packet thread may not make one.
#[derive(Debug)]
pub struct PathMtuSocket(UdpSocket);

impl PathMtuSocket {
    /// A probe that sends nothing, for packets from this address.
    ///
    /// # Errors
    /// `AddrNotAvailable` when the address is not this host's.
    pub fn new(source: Ipv4Addr) -> io::Result<Self> {
        let socket = UdpSocket::open()?;
        socket.discard_received();
        socket
            .0
            .bind(&SockAddr::from(SocketAddrV4::new(source, 0)))?;
        Ok(Self(socket))
    }

    /// The largest IP packet in bytes that leaves for a destination in one piece, as the
    /// routing table and path MTU discovery know it now (`IP_MTU`).
    ///
    /// # Errors
    /// When there is no route.
    pub fn mtu(&self, destination: SocketAddrV4) -> io::Result<u16> {
        // Each connect looks the route up anew.
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

/// Control messages are written and read as aligned bytes.
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

/// Length of a `cmsghdr`, and the alignment of what follows it.
const CONTROL_HEADER: usize = mem::size_of::<libc::cmsghdr>();
const CONTROL_ALIGN: usize = mem::size_of::<usize>();

/// Walks control messages as bytes (`CMSG_NXTHDR` without pointers): level, type, data.
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

/// Writes one control message and returns the length used so far, padded.
fn put_control(bytes: &mut [u8], at: usize, level: i32, kind: i32, data: &[u8]) -> usize {
    let length = CONTROL_HEADER + data.len();
    bytes[at..at + CONTROL_ALIGN].copy_from_slice(&length.to_ne_bytes());
    bytes[at + CONTROL_ALIGN..at + CONTROL_ALIGN + 4].copy_from_slice(&level.to_ne_bytes());
    bytes[at + CONTROL_ALIGN + 4..at + CONTROL_HEADER].copy_from_slice(&kind.to_ne_bytes());
    bytes[at + CONTROL_HEADER..at + length].copy_from_slice(data);
    at + length.next_multiple_of(CONTROL_ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn receive(batch: &mut ReceiveBatch, socket: &UdpSocket) -> usize {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match batch.receive(socket, usize::MAX) {
                Ok(count) => return count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "nothing arrived");
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn pair() -> (UdpSocket, UdpSocket, SocketAddrV4) {
        let receiver = UdpSocket::receiver(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = receiver.local_address().unwrap();
        (
            UdpSocket::sender(Ipv4Addr::LOCALHOST).unwrap(),
            receiver,
            address,
        )
    }

    #[test]
    fn messages_arrive_with_pieces_joined_and_ecn_kept() {
        let (sender, receiver, destination) = pair();
        let mut batch = SendBatch::new(8);
        let mut sending = batch.start();
        sending.message(MessageHead {
            destination,
            segment: None,
            ecn: 2,
        });
        sending.piece(b"hello ");
        sending.piece(b"world");
        sending.message(MessageHead {
            destination,
            segment: None,
            ecn: 0,
        });
        sending.piece(b"second");
        assert_eq!(sending.send(&sender, 0).unwrap(), 2);
        let mut received = ReceiveBatch::new(4, 2048);
        let mut seen = Vec::new();
        while seen.len() < 2 {
            for slot in 0..receive(&mut received, &receiver) {
                let info = received.datagram(slot);
                assert_eq!(info.source, sender.local_address().unwrap());
                let bytes = received.buffer()[info.start..info.start + info.len].to_vec();
                seen.push((bytes, info.tos, info.truncated));
            }
        }
        assert_eq!(seen[0], (b"hello world".to_vec(), 2, false));
        assert_eq!(seen[1], (b"second".to_vec(), 0, false));
    }

    #[test]
    fn segments_leave_in_one_message_and_arrive_joined() {
        let (sender, receiver, destination) = pair();
        if !sender.can_segment() || !receiver.enable_gro() {
            println!("SKIPPED: this kernel has no UDP_SEGMENT or no UDP_GRO");
            return;
        }
        let payload: Vec<u8> = (0..2500u32).map(|i| i as u8).collect();
        let mut batch = SendBatch::new(8);
        let mut sending = batch.start();
        sending.message(MessageHead {
            destination,
            segment: Some(1000),
            ecn: 1,
        });
        sending.piece(&payload);
        assert_eq!(sending.send(&sender, 0).unwrap(), 1);
        let mut received = ReceiveBatch::new(4, 65_536);
        let mut bytes = Vec::new();
        while bytes.len() < payload.len() {
            for slot in 0..receive(&mut received, &receiver) {
                let info = received.datagram(slot);
                assert_eq!(info.tos, 1);
                assert!(info.segment.is_none_or(|size| size == 1000));
                bytes.extend_from_slice(&received.buffer()[info.start..info.start + info.len]);
            }
        }
        assert_eq!(bytes, payload);
    }

    #[test]
    fn a_datagram_longer_than_the_slot_is_told_as_truncated() {
        let (sender, receiver, destination) = pair();
        let mut batch = SendBatch::new(1);
        let mut sending = batch.start();
        sending.message(MessageHead {
            destination,
            segment: None,
            ecn: 0,
        });
        sending.piece(&[7; 100]);
        assert!(sending.is_full());
        sending.send(&sender, 0).unwrap();
        let mut received = ReceiveBatch::new(1, 64);
        assert_eq!(receive(&mut received, &receiver), 1);
        let info = received.datagram(0);
        assert_eq!((info.len, info.truncated), (64, true));
    }

    #[test]
    fn an_error_is_the_first_unsent_messages_own() {
        let (sender, _receiver, destination) = pair();
        let mut batch = SendBatch::new(4);
        let huge = vec![0; 65_508];
        let mut sending = batch.start();
        sending.message(MessageHead {
            destination,
            segment: None,
            ecn: 0,
        });
        sending.piece(b"fits");
        sending.message(MessageHead {
            destination,
            segment: None,
            ecn: 0,
        });
        sending.piece(&huge);
        sending.message(MessageHead {
            destination,
            segment: None,
            ecn: 0,
        });
        sending.piece(b"fits too");
        assert_eq!(sending.send(&sender, 0).unwrap(), 1);
        let error = sending.send(&sender, 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        assert_eq!(sending.send(&sender, 2).unwrap(), 1);
    }

    #[test]
    fn the_interface_is_told_beside_the_rest() {
        let (sender, receiver, destination) = pair();
        receiver.enable_gro();
        receiver.report_interface().unwrap();
        let mut batch = SendBatch::new(1);
        let mut sending = batch.start();
        sending.message(MessageHead {
            destination,
            segment: sender.can_segment().then_some(4),
            ecn: 1,
        });
        sending.piece(b"eightbyt");
        sending.send(&sender, 0).unwrap();
        let mut received = ReceiveBatch::new(2, 64);
        assert!(receive(&mut received, &receiver) >= 1);
        let info = received.datagram(0);
        // The first interface of a network namespace is its loopback.
        assert_eq!((info.interface, info.tos), (Some(1), 1));
    }

    #[test]
    fn sockets_that_only_send_hold_nothing() {
        let source = Ipv4Addr::LOCALHOST;
        let sender = UdpSocket::sender(source).unwrap();
        let probe = PathMtuSocket::new(source).unwrap();
        let stranger = std::net::UdpSocket::bind((source, 0)).unwrap();
        for socket in [&sender, &probe.0] {
            let address = socket.local_address().unwrap();
            for _ in 0..3 {
                stranger.send_to(b"junk", address).unwrap();
                stranger.send_to(&[], address).unwrap();
            }
            let mut batch = ReceiveBatch::new(8, 64);
            let received = batch.receive(socket, usize::MAX);
            assert_eq!(received.unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert_eq!(socket.drops(), 6);
        }
        // It still sends, and asks.
        let address = stranger.local_addr().unwrap();
        let std::net::SocketAddr::V4(address) = address else {
            panic!("{address}")
        };
        assert!(probe.mtu(address).unwrap() > 0);
    }

    #[test]
    fn garbage_control_bytes_end_the_walk() {
        for length in 0..CONTROL_LEN {
            let bytes = [0xff; CONTROL_LEN];
            assert_eq!(control_messages(&bytes[..length]).count(), 0);
            let zeros = [0; CONTROL_LEN];
            assert_eq!(control_messages(&zeros[..length]).count(), 0);
        }
    }
}
