//! Which offloads are used, and whether the kernel implements them correctly.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::str::FromStr;
use std::time::Duration;

use crate::sys::kernel::{self, Version};
use crate::sys::poll;
use crate::sys::udp::{MessageHead, ReceiveBatch, SendBatch, UdpSocket};

/// `UDP_GRO` exists since Linux 5.0, but is correct only from this version on.
const CORRECT_GRO: Version = Version(5, 12, 0);
/// Kernels that corrupt the headers of datagrams sent by `UDP_SEGMENT`.
const BROKEN_SEGMENTATION: std::ops::Range<Version> = Version(7, 0, 0)..Version(7, 1, 5);
/// Loopback delivers at once; this is for a loaded machine.
const LOOPBACK_TIMEOUT: Duration = Duration::from_millis(200);

/// The four places where several packets can pass through the kernel as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// Super-packets are read from the TUN device (TSO, USO).
    pub read: bool,
    /// Datagrams of equal length are sent in one message (`UDP_SEGMENT`).
    pub send: bool,
    /// The kernel joins received datagrams (`UDP_GRO`).
    pub receive: bool,
    /// Inner segments are merged and written to the TUN device as super-packets.
    pub write: bool,
}

impl Offloads {
    /// All that the kernel supports.
    pub const AUTO: Self = Self {
        read: true,
        send: true,
        receive: true,
        write: true,
    };
    /// None: one packet at a time.
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

/// The text is not a valid list of offloads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("auto, off, or a list of read, send, receive and write, such as read,send or auto,-write")]
pub struct UnknownOffload;

impl FromStr for Offloads {
    type Err = UnknownOffload;

    fn from_str(text: &str) -> Result<Self, UnknownOffload> {
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
                    *offloads.part(name).ok_or(UnknownOffload)? = on;
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

/// Why a requested offload is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingOffload {
    /// Name of the offload.
    pub part: &'static str,
    /// The reason, for people.
    pub reason: String,
}

/// Checks the wanted offloads of sockets: whether the kernel has them, and whether they work.
pub(super) fn probe_sockets(
    wanted: Offloads,
    sender: &UdpSocket,
) -> (Offloads, Vec<MissingOffload>) {
    let mut usable = wanted;
    let mut missing = Vec::new();
    if wanted.send
        && let Err(reason) = can_send_segments(sender)
    {
        usable.send = false;
        missing.push(MissingOffload {
            part: "send",
            reason,
        });
    }
    let version = kernel::version();
    if wanted.receive && version < CORRECT_GRO {
        usable.receive = false;
        missing.push(MissingOffload {
            part: "receive",
            reason: format!("kernel {version} joins datagrams incorrectly (UDP_GRO before 5.12)"),
        });
    }
    (usable, missing)
}

/// Checks the offloads of sockets over loopback, without a packet loop. Those of the TUN device
/// cannot be checked without a device.
///
/// # Errors
/// If no socket can be opened.
pub fn probe() -> std::io::Result<(Offloads, Vec<MissingOffload>)> {
    let sender = UdpSocket::sender(Ipv4Addr::LOCALHOST)?;
    Ok(probe_sockets(Offloads::AUTO, &sender))
}

fn can_send_segments(sender: &UdpSocket) -> Result<(), String> {
    let version = kernel::version();
    if BROKEN_SEGMENTATION.contains(&version) {
        return Err(format!(
            "kernel {version} corrupts datagrams sent with UDP_SEGMENT (fixed in 7.1.5)"
        ));
    }
    if !sender.can_segment() {
        return Err(format!("kernel {version} has no UDP_SEGMENT (since 4.18)"));
    }
    match segments_arrive_intact() {
        Ok(true) => Ok(()),
        Ok(false) => Err("datagrams sent with UDP_SEGMENT over loopback arrived corrupted".into()),
        // If loopback is down, nothing is known; a refusal at run time will be noticed.
        Err(_) => Ok(()),
    }
}

/// Sends one message of three datagrams over loopback and compares what arrives.
fn segments_arrive_intact() -> std::io::Result<bool> {
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
        let [ready] = poll::wait_readable([receiver.as_fd()], Some(LOOPBACK_TIMEOUT))?;
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
    fn words_add_and_remove_offloads() {
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
            assert_eq!(text.parse::<Offloads>(), Err(UnknownOffload), "{text}");
        }
    }

    #[test]
    fn this_kernel_sends_segments_intact() {
        assert!(segments_arrive_intact().unwrap());
    }
}
