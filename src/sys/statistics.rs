//! The kernel's counters of packets that it dropped before the packet loop saw them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Reads the counters. The files show the network namespace in which they were opened.
#[derive(Debug)]
pub(crate) struct KernelDropCounters {
    devices: Option<File>,
    protocols: Option<File>,
    device: String,
}

/// Drops since the kernel started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct KernelDrops {
    /// Packets to the device that its queue had no room for.
    pub(crate) device: u64,
    /// Datagrams that the receive buffer of any UDP socket had no room for.
    pub(crate) sockets: u64,
}

impl KernelDropCounters {
    /// Opens the counters of this device and of this thread's network namespace. A file that
    /// cannot be opened counts nothing: forwarding does not need it.
    pub(crate) fn open(device: &str) -> Self {
        let open = |name| File::open(format!("/proc/thread-self/net/{name}")).ok();
        Self {
            devices: open("dev"),
            protocols: open("snmp"),
            device: device.to_owned(),
        }
    }

    pub(crate) fn now(&self) -> KernelDrops {
        let text = |file: &Option<File>| file.as_ref().and_then(|file| read(file).ok());
        let device = text(&self.devices).and_then(|text| transmit_drops(&text, &self.device));
        let sockets = text(&self.protocols).and_then(|text| receive_buffer_errors(&text));
        KernelDrops {
            device: device.unwrap_or(0),
            sockets: sockets.unwrap_or(0),
        }
    }
}

/// Reads a file of `/proc` from its beginning, which yields current numbers.
fn read(file: &File) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        match file.read_at(&mut part, bytes.len() as u64)? {
            0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            read => bytes.extend_from_slice(&part[..read]),
        }
    }
}

/// The transmit drops in `/proc/net/dev` (`dev_seq_printf_stats`): the twelfth number of a
/// line.
fn transmit_drops(text: &str, device: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, numbers) = lines.find(|(name, _)| name.trim() == device)?;
    numbers.split_whitespace().nth(11)?.parse().ok()
}

/// `RcvbufErrors` in `/proc/net/snmp`, which has a line of names and one of numbers.
fn receive_buffer_errors(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with("Udp: "));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let column = names
        .split_whitespace()
        .position(|name| name == "RcvbufErrors")?;
    numbers.split_whitespace().nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICES: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
flannel.1: 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36
flannel.10:41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56
";
    const PROTOCOLS: &str = "\
Ip: Forwarding DefaultTTL
Ip: 1 64
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors
Udp: 344 1 10 193 77 2
UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors
UdpLite: 0 0 0 0 9 0
";

    #[test]
    fn the_right_columns_are_read() {
        assert_eq!(transmit_drops(DEVICES, "flannel.1"), Some(32));
        assert_eq!(transmit_drops(DEVICES, "flannel.10"), Some(52));
        assert_eq!(transmit_drops(DEVICES, "flannel"), None);
        assert_eq!(transmit_drops("flannel.1: 1 2", "flannel.1"), None);
        assert_eq!(receive_buffer_errors(PROTOCOLS), Some(77));
        assert_eq!(receive_buffer_errors("Udp: RcvbufErrors"), None);
        assert_eq!(receive_buffer_errors(""), None);
    }

    #[test]
    fn this_kernel_can_be_read_repeatedly() {
        let counts = KernelDropCounters::open("lo");
        assert!(
            receive_buffer_errors(&read(counts.protocols.as_ref().unwrap()).unwrap()).is_some()
        );
        let devices = counts.devices.as_ref().unwrap();
        assert!(transmit_drops(&read(devices).unwrap(), "lo").is_some());
        assert!(transmit_drops(&read(devices).unwrap(), "lo").is_some());
        assert_eq!(KernelDropCounters::open("no-such-device").now().device, 0);
    }
}
