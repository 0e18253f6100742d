//! Who holds a UDP port, as far as `/proc` tells.

use std::fmt;
use std::fs;
use std::net::Ipv4Addr;

/// A socket of `/proc/net/udp`: local address, port and inode.
fn parse_line(line: &str) -> Option<(Ipv4Addr, u16, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let address = u32::from_str_radix(address, 16).ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Behind: remote address, state, queues, timer, retransmits, uid, timeout.
    let inode = fields.nth(7)?.parse().ok()?;
    // The kernel prints the bytes of the network's order as a number of its own.
    Some((Ipv4Addr::from(address.to_ne_bytes()), port, inode))
}

/// A socket's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id; none where the process cannot be seen from here, or is the kernel.
    pub pid: Option<u32>,
    /// Program name, as far as it is known.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "{} (pid {pid})", self.name.escape_debug()),
            None => f.write_str("a program that cannot be seen from here, or the kernel itself"),
        }
    }
}

/// Whether somebody in this network namespace receives on `port` at an address that
/// collides with `address`, and who: program name and process id where they can be seen.
#[must_use]
pub fn udp_holder(address: Ipv4Addr, port: u16) -> Option<String> {
    let inode = inodes(address, port).into_iter().next()?;
    Some(holder_of(inode).to_string())
}

/// All who do, each once.
#[must_use]
pub fn udp_holders(address: Ipv4Addr, port: u16) -> Vec<Holder> {
    let mut holders = Vec::new();
    for inode in inodes(address, port) {
        let holder = holder_of(inode);
        if !holders.contains(&holder) {
            holders.push(holder);
        }
    }
    holders
}

/// Who holds an abstract unix socket address of this network namespace.
#[must_use]
pub fn abstract_holder(name: &str) -> Option<Holder> {
    abstract_inodes(|found| found == name).next().map(holder_of)
}

/// All who hold one that begins with `prefix`.
#[must_use]
pub fn abstract_holders(prefix: &str) -> Vec<Holder> {
    abstract_inodes(|found| found.starts_with(prefix))
        .map(holder_of)
        .collect()
}

fn abstract_inodes(wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = u64> {
    let table = fs::read_to_string("/proc/self/net/unix").unwrap_or_default();
    let inodes: Vec<u64> = table
        .lines()
        .filter_map(|line| {
            // Behind: number, references, protocol, flags, type, state.
            let mut fields = line.split_ascii_whitespace().skip(6);
            let inode = fields.next()?.parse().ok()?;
            let name = fields.next()?.strip_prefix('@')?;
            wanted(name).then_some(inode)
        })
        .collect();
    inodes.into_iter()
}

fn inodes(address: Ipv4Addr, port: u16) -> Vec<u64> {
    let table = fs::read_to_string("/proc/self/net/udp").unwrap_or_default();
    let any = Ipv4Addr::UNSPECIFIED;
    table
        .lines()
        .skip(1)
        .filter_map(parse_line)
        .filter(|(at, found, _)| *found == port && (*at == address || *at == any || address == any))
        .map(|(_, _, inode)| inode)
        .collect()
}

fn holder_of(inode: u64) -> Holder {
    process_with(inode).unwrap_or_else(|| Holder {
        pid: None,
        name: String::new(),
    })
}

fn process_with(inode: u64) -> Option<Holder> {
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = descriptors.flatten().any(|descriptor| {
            fs::read_link(descriptor.path()).is_ok_and(|to| to.to_string_lossy() == wanted)
        });
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(Holder {
                pid: Some(pid),
                name: name.trim().to_owned(),
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn lines_of_proc_are_read() {
        let line = " 1234: 0100007F:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 56789 2 0000000000000000 0";
        let expected = Ipv4Addr::from(0x0100_007F_u32.to_ne_bytes());
        assert_eq!(parse_line(line), Some((expected, 8472, 56789)));
        assert_eq!(parse_line("sl local_address"), None);
        assert_eq!(parse_line(""), None);
    }

    #[test]
    fn the_holder_of_a_port_is_named() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let holder = udp_holder(Ipv4Addr::UNSPECIFIED, port).unwrap();
        let pid = std::process::id();
        assert!(holder.contains(&format!("(pid {pid})")), "{holder}");
        assert_eq!(udp_holder(Ipv4Addr::new(127, 0, 0, 2), port), None);
        let holders = udp_holders(Ipv4Addr::UNSPECIFIED, port);
        assert_eq!(holders.len(), 1);
        assert_eq!(holders[0].pid, Some(pid));
        drop(socket);
        assert_eq!(udp_holder(Ipv4Addr::UNSPECIFIED, port), None);
    }

    #[test]
    fn the_holder_of_an_abstract_address_is_named() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixDatagram};

        let name = format!("uvxlan/test-{}", std::process::id());
        assert_eq!(abstract_holder(&name), None);
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let _socket = UnixDatagram::bind_addr(&address).unwrap();
        let holder = abstract_holder(&name).unwrap();
        assert_eq!(holder.pid, Some(std::process::id()));
    }
}
