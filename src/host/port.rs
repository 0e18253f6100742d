//! Who holds a UDP port, as far as `/proc` tells.

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

/// Whether somebody in this network namespace receives on `port` at an address that
/// collides with `address`, and who: program name and process id where they can be seen.
#[must_use]
pub fn udp_holder(address: Ipv4Addr, port: u16) -> Option<String> {
    let table = fs::read_to_string("/proc/self/net/udp").unwrap_or_default();
    let any = Ipv4Addr::UNSPECIFIED;
    let inode = table
        .lines()
        .skip(1)
        .filter_map(parse_line)
        .find(|(at, found, _)| *found == port && (*at == address || *at == any || address == any))
        .map(|(_, _, inode)| inode)?;
    Some(
        process_with(inode).unwrap_or_else(|| {
            "a program that cannot be seen from here, or the kernel itself".into()
        }),
    )
}

fn process_with(inode: u64) -> Option<String> {
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
            return Some(format!("{} (pid {pid})", name.trim().escape_debug()));
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
        drop(socket);
        assert_eq!(udp_holder(Ipv4Addr::UNSPECIFIED, port), None);
    }
}
