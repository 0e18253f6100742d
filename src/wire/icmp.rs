//! ICMP and ICMPv6 messages that this program writes.
//!
//! Each function answers one offending packet, given from its IP header on, with a whole
//! IP packet from `source` to the offender's source, written to the front of `out`. None
//! answers what must not be answered (RFC 1122 section 3.2.2, RFC 1812 section 4.3.2.7,
//! RFC 4443 section 2.4 e). How often to answer is the caller's matter.

pub mod echo;

use std::net::{Ipv4Addr, Ipv6Addr};

use super::checksum::{Sum, pseudo_v6};
use super::ipv6::{self, Ipv6Packet};

/// Longest ICMPv4 message in bytes, IP header included (RFC 1812 section 4.3.2.3).
pub const V4_MAX_LEN: usize = 576;

/// Longest ICMPv6 error in bytes, IP header included: the minimum MTU (RFC 4443 section
/// 2.4 c).
pub const V6_MAX_LEN: usize = 1280;

/// Bytes of ICMP header before the quoted packet, in both versions.
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

/// Writes "net unreachable" (type 3, code 0, RFC 792); returns the length.
///
/// # Errors
/// See [`NoIcmp`].
pub fn net_unreachable(offender: &[u8], source: Ipv4Addr, out: &mut [u8]) -> Result<usize, NoIcmp> {
    write_v4([3, 0, 0, 0, 0, 0, 0, 0], offender, source, out)
}

/// Writes "packet too big" (type 2) with the MTU in bytes that the next hop takes (RFC
/// 4443 section 3.2); returns the length. It alone may answer a packet to a group.
///
/// # Errors
/// See [`NoIcmp`].
pub fn packet_too_big(
    offender: &[u8],
    source: Ipv6Addr,
    next_hop_mtu: u32,
    out: &mut [u8],
) -> Result<usize, NoIcmp> {
    let [a, b, c, d] = next_hop_mtu.to_be_bytes();
    write_v6([2, 0, 0, 0, a, b, c, d], offender, source, out)
}

/// Writes "no route to destination" (type 1, code 0, RFC 4443 section 3.1); returns the
/// length.
///
/// # Errors
/// See [`NoIcmp`].
pub fn no_route(offender: &[u8], source: Ipv6Addr, out: &mut [u8]) -> Result<usize, NoIcmp> {
    write_v6([1, 0, 0, 0, 0, 0, 0, 0], offender, source, out)
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

fn write_v6(
    icmp: [u8; HEADER_LEN],
    offender: &[u8],
    source: Ipv6Addr,
    out: &mut [u8],
) -> Result<usize, NoIcmp> {
    let too_big = icmp[0] == 2;
    let (quote, to) = answerable_v6(offender, too_big)?;
    let quote = quote
        .get(..V6_MAX_LEN - ipv6::HEADER_LEN - HEADER_LEN)
        .unwrap_or(quote);
    let total = ipv6::HEADER_LEN + HEADER_LEN + quote.len();
    let (header, message) = split_space(out, ipv6::HEADER_LEN, total)?;
    let [high, low] = (message.len() as u16).to_be_bytes();
    header[..8].copy_from_slice(&[0x60, 0, 0, 0, high, low, ipv6::ICMPV6, 64]);
    header[8..24].copy_from_slice(&source.octets());
    header[24..].copy_from_slice(&to);
    let pseudo = pseudo_v6(&source.octets(), &to, ipv6::ICMPV6, message.len() as u32);
    write_message(message, icmp, quote, pseudo);
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

/// The packet to quote and the address to answer to.
fn answerable_v6(bytes: &[u8], to_groups: bool) -> Result<(&[u8], [u8; 16]), NoIcmp> {
    let packet = Ipv6Packet::parse(bytes).ok_or(NoIcmp::NotIp)?;
    let whole = bytes.get(..packet.total_len()).ok_or(NoIcmp::NotIp)?;
    let (src, dst) = (Ipv6Addr::from(packet.src()), Ipv6Addr::from(packet.dst()));
    if src.is_unspecified() || src.is_multicast() || src.is_loopback() {
        return Err(NoIcmp::Group);
    }
    if dst.is_multicast() && !to_groups {
        return Err(NoIcmp::Group);
    }
    let transport = packet.transport().ok_or(NoIcmp::NotIp)?;
    if transport.fragment.is_some_and(|(offset, _)| offset > 0) {
        return Err(NoIcmp::LaterFragment);
    }
    // Types below 128 are errors; 137 is redirect.
    let kind = whole.get(transport.offset);
    if transport.protocol == ipv6::ICMPV6 && matches!(kind, None | Some(0..128 | 137)) {
        return Err(NoIcmp::Error);
    }
    Ok((whole, src.octets()))
}

#[cfg(test)]
mod tests;
