//! Receives many datagrams with one recvmmsg.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;

use super::{CONTROL_LEN, Control, UdpSocket, control_messages, empty_address, empty_message};

/// The buffers of one recvmmsg.
pub struct ReceiveBatch {
    buffer: Box<[u8]>,
    slot_len: usize,
    messages: Vec<libc::mmsghdr>,
    pieces: Vec<libc::iovec>,
    sources: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
}

// SAFETY: the raw pointers inside point into the batch's own heap buffers, are written
// before each call and never read outside `receive`; moving the batch moves none of them.
unsafe impl Send for ReceiveBatch {}

/// A received datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramInfo {
    /// Offset of its bytes in the batch's buffer.
    pub start: usize,
    /// Its length in bytes.
    pub len: usize,
    /// Address and port of the sender.
    pub source: SocketAddrV4,
    /// If the kernel joined datagrams, the length of each but the last.
    pub segment: Option<usize>,
    /// The outer type of service byte.
    pub tos: u8,
    /// Index of the interface that it arrived on, if the socket reports it.
    pub interface: Option<u32>,
    /// Whether it was longer than a slot, so that bytes are missing.
    pub truncated: bool,
}

impl ReceiveBatch {
    /// Buffers for `slots` datagrams of up to `slot_len` bytes.
    #[must_use]
    pub fn new(slots: usize, slot_len: usize) -> Self {
        let iovec = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            buffer: vec![0; slots * slot_len].into_boxed_slice(),
            slot_len,
            messages: vec![empty_message(); slots],
            pieces: vec![iovec; slots],
            sources: vec![empty_address(); slots],
            controls: vec![Control([0; CONTROL_LEN]); slots],
        }
    }

    /// The buffers of all slots, one after the other.
    #[must_use]
    pub fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Receives queued datagrams without waiting, at most `limit` and at most one per slot.
    /// Returns their number.
    ///
    /// # Errors
    /// `WouldBlock` if the queue is empty; `ConnectionRefused` for an ICMP error about an
    /// earlier datagram of this host.
    pub fn receive(&mut self, socket: &UdpSocket, limit: usize) -> io::Result<usize> {
        let slots = self.messages.len().min(limit);
        let chunks = self.buffer.chunks_exact_mut(self.slot_len);
        for (slot, chunk) in chunks.enumerate().take(slots) {
            self.pieces[slot] = libc::iovec {
                iov_base: chunk.as_mut_ptr().cast(),
                iov_len: chunk.len(),
            };
        }
        for slot in 0..slots {
            let header = &mut self.messages[slot].msg_hdr;
            header.msg_name = (&raw mut self.sources[slot]).cast();
            header.msg_namelen = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_iov = &raw mut self.pieces[slot];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[slot]).cast();
            // Reset each time, because the kernel overwrites it with the used length.
            header.msg_controllen = CONTROL_LEN as _;
            header.msg_flags = 0;
        }
        // SAFETY: each header points to buffers owned by `self`, of the lengths given, and
        // `self` is borrowed exclusively for the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.0.as_raw_fd(),
                self.messages.as_mut_ptr(),
                slots as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// The datagram in a slot, which must be below the number that the last call returned.
    #[must_use]
    pub fn datagram(&self, slot: usize) -> DatagramInfo {
        let message = &self.messages[slot];
        let source = &self.sources[slot];
        let mut info = DatagramInfo {
            start: slot * self.slot_len,
            len: (message.msg_len as usize).min(self.slot_len),
            source: SocketAddrV4::new(
                Ipv4Addr::from_bits(u32::from_be(source.sin_addr.s_addr)),
                u16::from_be(source.sin_port),
            ),
            segment: None,
            tos: 0,
            interface: None,
            truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        };
        #[allow(clippy::unnecessary_cast)] // another integer type with musl
        let used = (message.msg_hdr.msg_controllen as usize).min(CONTROL_LEN);
        for (level, kind, data) in control_messages(&self.controls[slot].0[..used]) {
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_TOS) => info.tos = data.first().copied().unwrap_or(0),
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let size = data
                        .first_chunk()
                        .map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                    info.segment = usize::try_from(size).ok().filter(|size| *size > 0);
                }
                // `ipi_ifindex` is the first member of `struct in_pktinfo`.
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    info.interface = data.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
                }
                _ => {}
            }
        }
        info
    }
}
