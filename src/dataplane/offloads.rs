//! Which work is handed to the kernel in large pieces, and whether it does it right.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::str::FromStr;
use std::time::Duration;

use crate::sys::kernel::{self, Version};
use crate::sys::poll;
use crate::sys::udp::{MessageHead, ReceiveBatch, SendBatch, UdpSocket};

/// `UDP_GRO` is there since Linux 5.0, and right since this one.
const JOINS_ON_RECEIVE: Version = Version(5, 12, 0);
/// Kernels that mangle the headers of equally long datagrams sent by `UDP_SEGMENT`.
const MANGLES_SEGMENTS: std::ops::Range<Version> = Version(7, 0, 0)..Version(7, 1, 5);

/// The four places where packets can pass the kernel in one piece instead of many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// Super-packets are read from the TUN device (TSO, USO).
    pub read: bool,
    /// Datagrams of one length leave in one message (`UDP_SEGMENT`).
    pub send: bool,
    /// The kernel joins datagrams that arrive (`UDP_GRO`).
    pub receive: bool,
    /// Inner segments are merged and written to the TUN device as super-packets.
    pub write: bool,
}

impl Offloads {
    /// Everything that the kernel takes.
    pub const AUTO: Self = Self {
        read: true,
        send: true,
        receive: true,
        write: true,
    };
    /// One packet at a time, everywhere.
    pub const OFF: Self = Self {
        read: false,
        send: false,
        receive: false,
        write: false,
    };

    fn part(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "read" => Some(&mut self.read),
            "send" => Some(&mut self.send),
            "receive" => Some(&mut self.receive),
            "write" => Some(&mut self.write),
            _ => None,
        }
    }
}

impl Default for Offloads {
    fn default() -> Self {
        Self::AUTO
    }
}

/// A word that is no part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("auto, off, or a list of read, send, receive and write, such as read,send or auto,-write")]
pub struct UnknownPart;

impl FromStr for Offloads {
    type Err = UnknownPart;

    fn from_str(text: &str) -> Result<Self, UnknownPart> {
        let mut offloads = Self::OFF;
        for word in text.split(',').map(str::trim) {
            match word {
                "auto" => offloads = Self::AUTO,
                "off" => offloads = Self::OFF,
                _ => {
                    let (name, on) = match word.strip_prefix('-') {
                        Some(name) => (name, false),
                        None => (word, true),
                    };
                    *offloads.part(name).ok_or(UnknownPart)? = on;
                }
            }
        }
        Ok(offloads)
    }
}

impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.read, "read"),
            (self.send, "send"),
            (self.receive, "receive"),
            (self.write, "write"),
        ];
        let on: Vec<_> = parts
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, name)| *name)
            .collect();
        match on.len() {
            0 => f.write_str("off"),
            _ => f.write_str(&on.join(",")),
        }
    }
}

/// Why a part is not used although it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingOffload {
    /// Name of the part.
    pub part: &'static str,
    /// One sentence for a person.
    pub reason: String,
}

/// Asks the kernel for what `wanted` has of sockets, and tries whether it works.
pub(super) fn probe_sockets(
    wanted: Offloads,
    sender: &UdpSocket,
) -> (Offloads, Vec<MissingOffload>) {
    let mut usable = wanted;
    let mut lacking = Vec::new();
    if wanted.send
        && let Err(reason) = can_send_segments(sender)
    {
        usable.send = false;
        lacking.push(MissingOffload {
            part: "send",
            reason,
        });
    }
    let version = kernel::version();
    if wanted.receive && version < JOINS_ON_RECEIVE {
        usable.receive = false;
        lacking.push(MissingOffload {
            part: "receive",
            reason: format!("kernel {version} joins datagrams wrongly (UDP_GRO before 5.12)"),
        });
    }
    (usable, lacking)
}

/// What the kernel takes of sockets' offloads, tried over loopback without a daemon. Those of
/// the TUN device show only when one is open.
///
/// # Errors
/// When there is no socket to try with.
pub fn probe() -> std::io::Result<(Offloads, Vec<MissingOffload>)> {
    let sender = UdpSocket::sender(Ipv4Addr::LOCALHOST)?;
    Ok(probe_sockets(Offloads::AUTO, &sender))
}

fn can_send_segments(sender: &UdpSocket) -> Result<(), String> {
    let version = kernel::version();
    if MANGLES_SEGMENTS.contains(&version) {
        return Err(format!(
            "kernel {version} mangles datagrams cut by UDP_SEGMENT (fixed in 7.1.5)"
        ));
    }
    if !sender.can_segment() {
        return Err(format!("kernel {version} has no UDP_SEGMENT (since 4.18)"));
    }
    match segments_arrive_whole() {
        Ok(true) => Ok(()),
        Ok(false) => Err("datagrams cut by UDP_SEGMENT came back changed over loopback".into()),
        // A loopback that is down tells nothing; a refusal at run time will.
        Err(_) => Ok(()),
    }
}

/// Sends one message of three datagrams over loopback and looks at what arrives.
fn segments_arrive_whole() -> std::io::Result<bool> {
    const SEGMENT: usize = 64;
    let any_port = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let receiver = UdpSocket::receiver(any_port)?;
    let sender = UdpSocket::sender(Ipv4Addr::LOCALHOST)?;
    let content: Vec<u8> = (0..3 * SEGMENT as u8).collect();
    let mut batch = SendBatch::new(1);
    let mut sending = batch.start();
    sending.message(MessageHead {
        destination: receiver.local_address()?,
        segment: Some(SEGMENT as u16),
        ecn: 0,
    });
    sending.piece(&content);
    sending.send(&sender, 0)?;
    let mut received = ReceiveBatch::new(8, 2048);
    let mut arrived = Vec::new();
    while arrived.len() < content.len() {
        let [ready] = poll::wait_readable([receiver.as_fd()], Some(Duration::from_millis(200)))?;
        if !ready {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        for slot in 0..received.receive(&receiver, usize::MAX)? {
            let info = received.datagram(slot);
            if info.len != SEGMENT {
                return Ok(false);
            }
            arrived.extend_from_slice(&received.buffer()[info.start..info.start + info.len]);
        }
    }
    Ok(arrived == content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_add_and_take_away() {
        let only = |name: &str| {
            let mut one = Offloads::OFF;
            *one.part(name).unwrap() = true;
            one
        };
        for (text, expected) in [
            ("auto", Offloads::AUTO),
            ("off", Offloads::OFF),
            ("send", only("send")),
            ("auto,-read,-receive,-write", only("send")),
            ("read, send,receive,write", Offloads::AUTO),
            ("off,write", only("write")),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
            assert_eq!(expected.to_string().parse(), Ok(expected), "{text}");
        }
        for text in ["", "gso", "auto,", "--read"] {
            assert_eq!(text.parse::<Offloads>(), Err(UnknownPart), "{text}");
        }
    }

    #[test]
    fn this_kernel_sends_segments_whole() {
        assert!(segments_arrive_whole().unwrap());
    }
}
