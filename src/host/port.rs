//! Which processes hold a UDP port or an abstract socket address, as far as `/proc` shows.

use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

/// A socket of `/proc/net/udp` or `udp6`: the IPv4 address it receives on, port and inode. An IPv6
/// socket on the wildcard address receives IPv4 too, unless `IPV6_V6ONLY` is set, which is not
/// shown there; one that is bound to an IPv6 address does not.
fn parse_line(line: &str) -> Option<(Ipv4Addr, u16, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let address = match address.len() {
        8 => Ipv4Addr::from(word(address)?),
        32 => {
            let mut bytes = [0; 16];
            for (chunk, at) in bytes.chunks_exact_mut(4).zip((0..).step_by(8)) {
                chunk.copy_from_slice(&word(address.get(at..at + 8)?)?);
            }
            match Ipv6Addr::from(bytes) {
                Ipv6Addr::UNSPECIFIED => Ipv4Addr::UNSPECIFIED,
                other => other.to_ipv4_mapped()?,
            }
        }
        _ => return None,
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    // In between: remote address, state, queues, timer, retransmits, uid, timeout.
    let inode = fields.nth(7)?.parse().ok()?;
    Some((address, port, inode))
}

/// The kernel prints four bytes in network order as one number in host order.
fn word(text: &str) -> Option<[u8; 4]> {
    let number = u32::from_str_radix(text, 16).ok()?;
    Some(number.to_ne_bytes())
}

/// Whether another socket of this network namespace occupies this address and port, including
/// sockets of the kernel and IPv6 sockets that receive IPv4. Binding a socket for a moment is the
/// only way to know. Fails for other reasons, such as a port below 1024 without the privilege.
pub(crate) fn is_taken(address: Ipv4Addr, port: u16) -> io::Result<bool> {
    match UdpSocket::bind((address, port)) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(true),
        Err(error) => Err(error),
    }
}

/// The owner of a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// None if the process is not visible from here, or is the kernel.
    pub pid: Option<u32>,
    /// Program name, if known.
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

/// The processes of this network namespace that receive on `port` at an address that conflicts
/// with `address`.
pub(crate) fn udp_holders(address: Ipv4Addr, port: u16) -> Vec<Holder> {
    let mut holders = Vec::new();
    for inode in inodes(address, port) {
        let holder = holder_of(inode);
        if !holders.contains(&holder) {
            holders.push(holder);
        }
    }
    holders
}

/// The holder of an abstract unix socket address of this network namespace.
pub(crate) fn abstract_holder(name: &str) -> Option<Holder> {
    abstract_inodes(|found| found == name).next().map(holder_of)
}

/// The holders of those that begin with `prefix`.
pub(crate) fn abstract_holders(prefix: &str) -> Vec<Holder> {
    abstract_inodes(|found| found.starts_with(prefix))
        .map(holder_of)
        .collect()
}

fn abstract_inodes(wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = u64> {
    let table = fs::read_to_string("/proc/self/net/unix").unwrap_or_default();
    let inodes: Vec<u64> = table
        .lines()
        .filter_map(|line| {
            // Before it: number, references, protocol, flags, type, state.
            let mut fields = line.split_ascii_whitespace().skip(6);
            let inode = fields.next()?.parse().ok()?;
            let name = fields.next()?.strip_prefix('@')?;
            wanted(name).then_some(inode)
        })
        .collect();
    inodes.into_iter()
}

fn inodes(address: Ipv4Addr, port: u16) -> Vec<u64> {
    let any = Ipv4Addr::UNSPECIFIED;
    let listed = |table: &str| -> Vec<u64> {
        let table = fs::read_to_string(table).unwrap_or_default();
        let sockets = table.lines().skip(1).filter_map(parse_line);
        let conflicts = |at: Ipv4Addr| at == address || at == any || address == any;
        sockets
            .filter(|(at, found, _)| *found == port && conflicts(*at))
            .map(|(_, _, inode)| inode)
            .collect()
    };
    let found = listed("/proc/self/net/udp");
    // IPv6 sockets matter if one of them receives IPv4 too.
    if found.is_empty() {
        let of_ipv6 = listed("/proc/self/net/udp6");
        if !of_ipv6.is_empty() && is_taken(address, port).unwrap_or(false) {
            return of_ipv6;
        }
    }
    found
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
        let of = |address: &str| {
            let line = line.replace("0100007F:2118", &format!("{address}:2118"));
            parse_line(&line).map(|(address, ..)| address)
        };
        assert_eq!(of(&"0".repeat(32)), Some(Ipv4Addr::UNSPECIFIED));
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
        let mapped: String = mapped
            .chunks_exact(4)
            .map(|bytes| format!("{:08X}", u32::from_ne_bytes(bytes.try_into().unwrap())))
            .collect();
        assert_eq!(of(&mapped), Some(Ipv4Addr::LOCALHOST));
        assert_eq!(of("000080FE00000000FF005450B8D3A9FE"), None);
        assert_eq!(of("00"), None);
        assert_eq!(parse_line("sl local_address"), None);
        assert_eq!(parse_line(""), None);
    }

    #[test]
    fn the_holder_of_a_port_is_named() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let holders = udp_holders(Ipv4Addr::UNSPECIFIED, port);
        assert_eq!(holders.len(), 1);
        let pid = std::process::id();
        assert_eq!(holders[0].pid, Some(pid));
        let shown = holders[0].to_string();
        assert!(shown.contains(&format!("(pid {pid})")), "{shown}");
        assert!(is_taken(Ipv4Addr::UNSPECIFIED, port).unwrap());
        let elsewhere = Ipv4Addr::new(127, 0, 0, 2);
        assert_eq!(udp_holders(elsewhere, port), []);
        assert!(!is_taken(elsewhere, port).unwrap());
        drop(socket);
        assert_eq!(udp_holders(Ipv4Addr::UNSPECIFIED, port), []);
        assert!(!is_taken(Ipv4Addr::UNSPECIFIED, port).unwrap());
    }

    #[test]
    fn a_socket_of_both_families_is_a_holder_and_one_of_ipv6_alone_is_none() {
        use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
        use std::net::{SocketAddr, SocketAddrV6};

        let Ok(both) = UdpSocket::bind("[::]:0") else {
            println!("SKIPPED: no IPv6 here");
            return;
        };
        let port = both.local_addr().unwrap().port();
        let holders = udp_holders(Ipv4Addr::UNSPECIFIED, port);
        assert_eq!(holders.len(), 1, "{holders:?}");
        assert_eq!(holders[0].pid, Some(std::process::id()));
        drop(both);

        let alone = socket(AddressFamily::INET6, SocketType::DGRAM, None).unwrap();
        sockopt::set_ipv6_v6only(&alone, true).unwrap();
        let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
        bind(&alone, &SocketAddr::V6(any)).unwrap();
        assert_eq!(udp_holders(Ipv4Addr::UNSPECIFIED, port), []);
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
