//! Sends many datagrams with one sendmmsg.

use std::io;
use std::mem;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;

use super::{CONTROL_LEN, Control, UdpSocket, empty_address, empty_message, put_control};

/// Head of a message: one datagram, or several of equal length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageHead {
    /// Address and port of the receiver.
    pub destination: SocketAddrV4,
    /// Length of the datagrams that the kernel cuts the message into (`UDP_SEGMENT`); `None`
    /// sends one datagram.
    pub segment: Option<u16>,
    /// ECN codepoint of the outer header; DSCP is 0.
    pub ecn: u8,
}

/// The buffers of one sendmmsg.
pub struct SendBatch {
    messages: Vec<libc::mmsghdr>,
    pieces: Vec<libc::iovec>,
    /// Index of each message's first piece.
    first_piece: Vec<usize>,
    destinations: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    capacity: usize,
}

// SAFETY: the raw pointers inside are written from borrows that `Sending` keeps alive
// until the call, and never read after it.
unsafe impl Send for SendBatch {}

/// A sendmmsg under construction. It borrows every piece until it is sent.
pub struct Sending<'a> {
    batch: &'a mut SendBatch,
}

impl SendBatch {
    /// Space for this many messages per call. Space for pieces grows as needed.
    #[must_use]
    pub fn new(messages: usize) -> Self {
        Self {
            messages: Vec::with_capacity(messages),
            pieces: Vec::with_capacity(messages * 4),
            first_piece: Vec::with_capacity(messages),
            destinations: Vec::with_capacity(messages),
            controls: Vec::with_capacity(messages),
            capacity: messages,
        }
    }

    /// Starts a new call.
    pub fn start(&mut self) -> Sending<'_> {
        self.messages.clear();
        self.pieces.clear();
        self.first_piece.clear();
        self.destinations.clear();
        self.controls.clear();
        Sending { batch: self }
    }
}

impl<'a> Sending<'a> {
    /// Whether another message fits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.batch.first_piece.len() == self.batch.capacity
    }

    /// Number of messages so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.batch.first_piece.len()
    }

    /// Whether there are no messages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Begins the next message. Its pieces follow.
    pub fn message(&mut self, head: MessageHead) {
        let batch = &mut *self.batch;
        batch.first_piece.push(batch.pieces.len());
        batch.destinations.push(libc::sockaddr_in {
            sin_port: head.destination.port().to_be(),
            sin_addr: libc::in_addr {
                s_addr: head.destination.ip().to_bits().to_be(),
            },
            ..empty_address()
        });
        let mut control = Control([0; CONTROL_LEN]);
        let mut used = 0;
        if let Some(segment) = head.segment {
            used = put_control(
                &mut control.0,
                used,
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                &segment.to_ne_bytes(),
            );
        }
        if head.ecn != 0 {
            let tos = libc::c_int::from(head.ecn).to_ne_bytes();
            used = put_control(&mut control.0, used, libc::IPPROTO_IP, libc::IP_TOS, &tos);
        }
        batch.controls.push(control);
        let mut message = empty_message();
        message.msg_hdr.msg_controllen = used as _;
        batch.messages.push(message);
    }

    /// Adds bytes to the current message.
    #[inline]
    pub fn piece(&mut self, bytes: &'a [u8]) {
        self.batch.pieces.push(libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        });
    }

    /// Sends the messages from number `from` on. Returns how many were sent.
    ///
    /// # Errors
    /// The error of message `from`. Later messages were not tried.
    pub fn send(&mut self, socket: &UdpSocket, from: usize) -> io::Result<usize> {
        let batch = &mut *self.batch;
        let count = batch.messages.len();
        if from >= count {
            return Ok(0);
        }
        for number in from..count {
            let start = batch.first_piece[number];
            let end = batch
                .first_piece
                .get(number + 1)
                .copied()
                .unwrap_or(batch.pieces.len());
            let header = &mut batch.messages[number].msg_hdr;
            header.msg_name = (&raw mut batch.destinations[number]).cast();
            header.msg_namelen = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_iov = batch.pieces[start..end].as_mut_ptr();
            header.msg_iovlen = (end - start) as _;
            header.msg_control = match header.msg_controllen {
                0 => std::ptr::null_mut(),
                _ => (&raw mut batch.controls[number]).cast(),
            };
        }
        // SAFETY: headers point into vectors of `batch` that are not changed during the
        // call, and pieces to slices borrowed for 'a, which outlives `self`.
        let sent = unsafe {
            libc::sendmmsg(
                socket.0.as_raw_fd(),
                batch.messages[from..].as_mut_ptr(),
                (count - from) as libc::c_uint,
                libc::MSG_DONTWAIT as _,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}
