//! The inner Ethernet header: destination, source, ethertype; no VLAN tag.

pub mod mac;

use super::MacAddr;

/// Length of an untagged Ethernet header in bytes.
pub const HEADER_LEN: usize = 14;
/// Ethertype of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;

/// Ethertype for local experiments (IEEE 802): our probes'.
pub const ETHERTYPE_EXPERIMENTAL: u16 = 0x88b5;

/// An Ethernet header, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Destination address.
    pub destination: MacAddr,
    /// Source address.
    pub source: MacAddr,
    /// Ethertype, as a number.
    pub ethertype: u16,
}

/// Reads the header at the start of a frame, or `None` where the frame is shorter.
#[must_use]
#[inline]
pub fn parse(frame: &[u8]) -> Option<Header> {
    let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] =
        frame.first_chunk::<HEADER_LEN>()?;
    Some(Header {
        destination: MacAddr([d0, d1, d2, d3, d4, d5]),
        source: MacAddr([s0, s1, s2, s3, s4, s5]),
        ethertype: u16::from_be_bytes([t0, t1]),
    })
}

/// The header's bytes.
#[must_use]
pub fn header(destination: MacAddr, source: MacAddr, ethertype: u16) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..6].copy_from_slice(&destination.0);
    bytes[6..12].copy_from_slice(&source.0);
    bytes[12..].copy_from_slice(&ethertype.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(d: [u8; 6], s: [u8; 6], ethertype: u16) {
            let bytes = header(MacAddr(d), MacAddr(s), ethertype);
            prop_assert_eq!(
                parse(&bytes),
                Some(Header { destination: MacAddr(d), source: MacAddr(s), ethertype })
            );
            for cut in 0..HEADER_LEN {
                prop_assert_eq!(parse(&bytes[..cut]), None);
            }
        }
    }
}
