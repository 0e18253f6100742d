//! ICMP errors about a container's packet.
//!
//! Each function takes the offending packet from its IP header on, and writes a whole IP packet
//! from `source` to the offender's source to the front of `out`. Packets that must not be
//! answered are refused (RFC 1122 section 3.2.2, RFC 1812 section 4.3.2.7). The caller limits
//! the rate.

pub mod echo;

use std::net::Ipv4Addr;

use super::checksum::Sum;

/// Longest ICMPv4 message in bytes, IP header included (RFC 1812 section 4.3.2.3).
pub const V4_MAX_LEN: usize = 576;

/// Bytes of ICMP header before the quoted packet.
const HEADER_LEN: usize = 8;
const V4_HEADER_LEN: usize = 20;
const V4_PROTOCOL: u8 = 1;

/// Why no message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoIcmp {
    /// The offender is no packet of this IP version, or cut short.
    #[error("the packet to answer is no whole IP packet of this version")]
    NotIp,
    /// The offender is an ICMP error itself.
    #[error("an ICMP error is never answered with another")]
    Error,
    /// The offender is a fragment other than the first.
    #[error("only the first fragment of a packet is answered")]
    LaterFragment,
    /// The source is no single host, or the destination is a group.
    #[error("packets of or to groups of hosts are not answered")]
    Group,
    /// The space for the message is too small.
    #[error("the message needs {need} bytes, {have} are there")]
    Space {
        /// Bytes needed.
        need: usize,
        /// Bytes given.
        have: usize,
    },
}

/// Writes "fragmentation needed and DF set" (type 3, code 4) with the MTU in bytes that
/// the next hop takes (RFC 1191 section 4); returns the length.
///
/// # Errors
/// See [`NoIcmp`].
pub fn fragmentation_needed(
    offender: &[u8],
    source: Ipv4Addr,
    next_hop_mtu: u16,
    out: &mut [u8],
) -> Result<usize, NoIcmp> {
    let [high, low] = next_hop_mtu.to_be_bytes();
    write_v4([3, 4, 0, 0, 0, 0, high, low], offender, source, out)
}

fn write_v4(
    icmp: [u8; HEADER_LEN],
    offender: &[u8],
    source: Ipv4Addr,
    out: &mut [u8],
) -> Result<usize, NoIcmp> {
    let (quote, to) = answerable_v4(offender)?;
    let quote = quote
        .get(..V4_MAX_LEN - V4_HEADER_LEN - HEADER_LEN)
        .unwrap_or(quote);
    let total = V4_HEADER_LEN + HEADER_LEN + quote.len();
    let (header, message) = split_space(out, V4_HEADER_LEN, total)?;
    let [high, low] = (total as u16).to_be_bytes();
    // Internetwork control as precedence, which RFC 1812 section 4.3.2.5 recommends; DF with
    // an identification of zero, since nothing splits packets this short (RFC 6864).
    header[..12].copy_from_slice(&[0x45, 0xc0, high, low, 0, 0, 0x40, 0, 64, V4_PROTOCOL, 0, 0]);
    header[12..16].copy_from_slice(&source.octets());
    header[16..].copy_from_slice(&to);
    let check = Sum::of(header).finish();
    header[10..12].copy_from_slice(&check);
    write_message(message, icmp, quote, Sum::ZERO);
    Ok(total)
}

/// The parts of `out` for IP header and ICMP message.
fn split_space(
    out: &mut [u8],
    header_len: usize,
    total: usize,
) -> Result<(&mut [u8], &mut [u8]), NoIcmp> {
    let space = NoIcmp::Space {
        need: total,
        have: out.len(),
    };
    out.get_mut(..total)
        .and_then(|out| out.split_at_mut_checked(header_len))
        .ok_or(space)
}

/// Fills `message`, which has room for exactly header and quote.
fn write_message(message: &mut [u8], icmp: [u8; HEADER_LEN], quote: &[u8], pseudo: Sum) {
    message[..HEADER_LEN].copy_from_slice(&icmp);
    message[HEADER_LEN..].copy_from_slice(quote);
    let check = (pseudo + Sum::of(message)).finish();
    message[2..4].copy_from_slice(&check);
}

/// The packet to quote and the address to answer to.
fn answerable_v4(bytes: &[u8]) -> Result<(&[u8], [u8; 4]), NoIcmp> {
    let header: &[u8; V4_HEADER_LEN] = bytes.first_chunk().ok_or(NoIcmp::NotIp)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || header_len < V4_HEADER_LEN || total < header_len {
        return Err(NoIcmp::NotIp);
    }
    let packet = bytes.get(..total).ok_or(NoIcmp::NotIp)?;
    if header[6] & 0x1f != 0 || header[7] != 0 {
        return Err(NoIcmp::LaterFragment);
    }
    let [.., a, b, c, d, e, f, g, h] = *header;
    let (src, dst) = (Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h));
    // Class E holds the limited broadcast; net 0 holds the unspecified address.
    if a == 0 || a >= 224 || src.is_loopback() || e >= 224 || dst.is_broadcast() {
        return Err(NoIcmp::Group);
    }
    // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
    // An ICMP message too short to tell its type gets the benefit of no answer.
    let kind = packet.get(header_len);
    if header[9] == V4_PROTOCOL && matches!(kind, None | Some(3..=5 | 11 | 12)) {
        return Err(NoIcmp::Error);
    }
    Ok((packet, src.octets()))
}

#[cfg(test)]
mod tests;
