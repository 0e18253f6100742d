//! The virtio-net header before each packet of a TUN with `IFF_VNET_HDR`.
//!
//! Layout and meaning: `include/uapi/linux/virtio_net.h` and `include/linux/virtio_net.h`.
//! Its 16-bit fields have the host's byte order (without `TUNSETVNETLE`/`BE`).

/// Length of the header in bytes, the kernel's default (`TUNSETVNETHDRSZ`).
pub const LEN: usize = 10;

/// `flags`: the checksum from `csum_start` on is still to be computed; its field holds
/// the folded pseudo-header sum.
pub const F_NEEDS_CSUM: u8 = 1;

/// `gso_type`: one ordinary packet.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: a super-packet of TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: UDP fragmentation offload, which this program never asks for.
pub const GSO_UDP: u8 = 3;
/// `gso_type`: a super-packet of TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: many equal UDP datagrams in one, over IPv4 or IPv6.
pub const GSO_UDP_L4: u8 = 5;
/// `gso_type`, added to a TCP type: the super-packet carries CWR.
pub const GSO_ECN: u8 = 0x80;

/// `csum_offset` of TCP in bytes.
pub const CSUM_OFFSET_TCP: u16 = 16;
/// `csum_offset` of UDP in bytes.
pub const CSUM_OFFSET_UDP: u16 = 6;

/// `struct virtio_net_hdr`, as values. The default is the header of a packet that is
/// complete as it lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHdr {
    /// Bits `F_*`.
    pub flags: u8,
    /// One of `GSO_*`, with [`GSO_ECN`] added where it applies.
    pub gso_type: u8,
    /// Bytes of all headers; the kernel's is a hint which can be too large.
    pub hdr_len: u16,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// Where the checksum begins: bytes from the start of the packet.
    pub csum_start: u16,
    /// Where the checksum's field is: bytes from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHdr {
    /// Reads the header off the front of `bytes`; `None` if they are fewer than [`LEN`].
    #[inline]
    #[must_use]
    pub const fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first_chunk::<LEN>() {
            Some(header) => Some(Self::from_bytes(*header)),
            None => None,
        }
    }

    /// Reads the header.
    #[inline]
    #[must_use]
    pub const fn from_bytes(bytes: [u8; LEN]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([a, b]),
            gso_size: u16::from_ne_bytes([c, d]),
            csum_start: u16::from_ne_bytes([e, f]),
            csum_offset: u16::from_ne_bytes([g, h]),
        }
    }

    /// The header as the kernel takes it.
    #[inline]
    #[must_use]
    pub const fn to_bytes(self) -> [u8; LEN] {
        let [a, b] = self.hdr_len.to_ne_bytes();
        let [c, d] = self.gso_size.to_ne_bytes();
        let [e, f] = self.csum_start.to_ne_bytes();
        let [g, h] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }

    /// Whether the checksum is left to the reader.
    #[inline]
    #[must_use]
    pub const fn needs_csum(self) -> bool {
        self.flags & F_NEEDS_CSUM != 0
    }

    /// Whether the packet stands for several segments.
    #[inline]
    #[must_use]
    pub const fn is_gso(self) -> bool {
        self.gso_type != GSO_NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn layout_is_the_kernels() {
        let hdr = VnetHdr {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_TCPV4 | GSO_ECN,
            hdr_len: 52,
            gso_size: 1398,
            csum_start: 20,
            csum_offset: CSUM_OFFSET_TCP,
        };
        let mut expected = vec![1, 0x81];
        for field in [52u16, 1398, 20, 16] {
            expected.extend(field.to_ne_bytes());
        }
        assert_eq!(hdr.to_bytes().to_vec(), expected);
        assert_eq!(VnetHdr::default().to_bytes(), [0; LEN]);
    }

    proptest! {
        #[test]
        fn every_header_survives_both_ways(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            match VnetHdr::parse(&bytes) {
                None => prop_assert!(bytes.len() < LEN),
                Some(hdr) => prop_assert_eq!(&hdr.to_bytes()[..], &bytes[..LEN]),
            }
        }
    }
}
