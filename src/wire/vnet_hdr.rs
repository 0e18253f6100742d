//! The virtio-net header before each packet of a TUN device with IFF_VNET_HDR: ten bytes
//! in the machine's byte order (`include/uapi/linux/virtio_net.h`).

/// Length in bytes.
pub const LEN: usize = 10;
/// The checksum at `csum_start + csum_offset` is unfinished: it holds the folded sum of the
/// pseudo header, and the bytes from `csum_start` on are still to be added.
pub const NEEDS_CSUM: u8 = 1;
/// The packet's checksum was verified by who hands it over.
pub const DATA_VALID: u8 = 2;

/// What a super-packet is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoKind {
    /// One packet.
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams of equal length, over IPv4 or IPv6.
    UdpL4,
}

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// TCP with CWR set: the first segment alone keeps the flag.
const GSO_ECN: u8 = 0x80;

/// A virtio-net header, read or to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VnetHdr {
    /// [`NEEDS_CSUM`] and others.
    pub flags: u8,
    /// What the packet is made of.
    pub gso: GsoKind,
    /// Whether the super-packet's TCP header has CWR set.
    pub ecn: bool,
    /// Length of all headers in bytes; only a hint when read.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where the transport header begins, from the packet's start.
    pub csum_start: u16,
    /// Where in it the checksum lies.
    pub csum_offset: u16,
}

impl VnetHdr {
    /// One packet with nothing left to do; as bytes, all zero.
    pub const EMPTY: Self = Self {
        flags: 0,
        gso: GsoKind::None,
        ecn: false,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Reads the header; `None` for a type of super-packet that was never asked for.
    #[must_use]
    #[inline]
    pub fn parse(bytes: &[u8; LEN]) -> Option<Self> {
        let &[flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1] = bytes;
        let gso = match gso_type & !GSO_ECN {
            GSO_NONE => GsoKind::None,
            GSO_TCPV4 => GsoKind::TcpV4,
            GSO_TCPV6 => GsoKind::TcpV6,
            GSO_UDP_L4 => GsoKind::UdpL4,
            _ => return None,
        };
        Some(Self {
            flags,
            gso,
            ecn: gso_type & GSO_ECN != 0,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([s0, s1]),
            csum_start: u16::from_ne_bytes([c0, c1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        })
    }

    /// The header's bytes.
    #[must_use]
    #[inline]
    pub fn to_bytes(&self) -> [u8; LEN] {
        let gso_type = match self.gso {
            GsoKind::None => GSO_NONE,
            GsoKind::TcpV4 => GSO_TCPV4,
            GsoKind::TcpV6 => GSO_TCPV6,
            GsoKind::UdpL4 => GSO_UDP_L4,
        };
        let mut bytes = [0; LEN];
        bytes[0] = self.flags;
        bytes[1] = gso_type | if self.ecn { GSO_ECN } else { 0 };
        bytes[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.csum_offset.to_ne_bytes());
        bytes
    }

    /// Whether the checksum is unfinished.
    #[must_use]
    #[inline]
    pub const fn needs_checksum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_header_is_zero() {
        assert_eq!(VnetHdr::EMPTY.to_bytes(), [0; LEN]);
        assert_eq!(VnetHdr::parse(&[0; LEN]), Some(VnetHdr::EMPTY));
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_alike(bytes: [u8; LEN]) {
            match VnetHdr::parse(&bytes) {
                Some(header) => prop_assert_eq!(header.to_bytes(), bytes),
                None => prop_assert!(![0, 1, 4, 5].contains(&(bytes[1] & 0x7f))),
            }
        }
    }
}
