//! The VXLAN header (RFC 7348 section 5) and the whole encapsulation in front of an inner packet.
//!
//! ```text
//!  0        1        2        3
//! +--------+--------+--------+--------+
//! | flags  |        reserved          |   flags: 0x08 (I, "VNI valid"), all else zero
//! +--------+--------+--------+--------+
//! |           VNI            |reserved|
//! +--------+--------+--------+--------+
//! ```

pub mod ecn;
pub mod vni;

use super::ethernet;
use super::{MacAddr, Vni};

/// Length of the VXLAN header in bytes.
pub const HEADER_LEN: usize = 8;
/// Length of what stands between the outer UDP header and the inner IP packet: VXLAN and
/// inner Ethernet header.
pub const ENCAP_LEN: usize = HEADER_LEN + ethernet::HEADER_LEN;
/// What a VXLAN tunnel over IPv4 takes from the MTU: outer IPv4 (20), UDP (8), VXLAN (8)
/// and inner Ethernet (14); flannel's `encapOverhead`.
pub const OVERHEAD: u16 = 50;
/// UDP port of flannel, and of the kernel's module unless told otherwise (not IANA's 4789).
pub const DEFAULT_PORT: u16 = 8472;

const FLAG_VNI_VALID: u8 = 0x08;

/// Why eight bytes are no VXLAN header that a receiver without extensions takes.
///
/// The kernel (`vxlan_rcv` in `drivers/net/vxlan/vxlan_core.c`) drops all of these; it is
/// deliberately stricter than RFC 7348, which wants reserved bits ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Fewer than eight bytes.
    #[error("shorter than a VXLAN header")]
    Short,
    /// The I flag is not set, so the VNI is not valid.
    #[error("VXLAN I flag missing")]
    NoVni,
    /// A reserved bit is set: an extension (GBP, GPE, remote checksum) or garbage.
    #[error("reserved VXLAN bits set")]
    Reserved,
}

/// Reads the header at the start of a UDP payload and returns the VNI.
///
/// # Errors
/// [`HeaderError`] where the kernel would drop the datagram too.
pub fn parse(datagram: &[u8]) -> Result<Vni, HeaderError> {
    let Some(&[flags, r1, r2, r3, v1, v2, v3, r4]) = datagram.first_chunk::<HEADER_LEN>() else {
        return Err(HeaderError::Short);
    };
    if flags & FLAG_VNI_VALID == 0 {
        return Err(HeaderError::NoVni);
    }
    if (flags & !FLAG_VNI_VALID) | r1 | r2 | r3 | r4 != 0 {
        return Err(HeaderError::Reserved);
    }
    let number = u64::from(u32::from_be_bytes([0, v1, v2, v3]));
    Vni::try_from(number).map_err(|_| HeaderError::Reserved)
}

/// The header's bytes for a VNI.
#[must_use]
pub const fn header(vni: Vni) -> [u8; HEADER_LEN] {
    let [_, v1, v2, v3] = vni.get().to_be_bytes();
    [FLAG_VNI_VALID, 0, 0, 0, v1, v2, v3, 0]
}

/// The 22 bytes before each inner packet; only the destination MAC differs by peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncapTemplate([u8; ENCAP_LEN]);

impl EncapTemplate {
    /// A template for IPv4 packets of this VNI, sent by the VTEP with this MAC.
    #[must_use]
    pub fn ipv4(vni: Vni, source: MacAddr) -> Self {
        let mut bytes = [0; ENCAP_LEN];
        bytes[..HEADER_LEN].copy_from_slice(&header(vni));
        bytes[HEADER_LEN..].copy_from_slice(&ethernet::header(
            MacAddr::default(),
            source,
            ethernet::ETHERTYPE_IPV4,
        ));
        Self(bytes)
    }

    /// The bytes towards the VTEP with this MAC.
    #[must_use]
    #[inline]
    pub fn towards(&self, destination: MacAddr) -> [u8; ENCAP_LEN] {
        let mut bytes = self.0;
        bytes[HEADER_LEN..HEADER_LEN + 6].copy_from_slice(&destination.0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_of_the_kernel_reads_back() {
        // Captured from a kernel vxlan device, id 1.
        assert_eq!(parse(&[8, 0, 0, 0, 0, 0, 1, 0]).map(Vni::get), Ok(1));
        assert_eq!(header(Vni::DEFAULT), [8, 0, 0, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn each_reserved_bit_is_refused() {
        let good = header(Vni::MAX);
        for bit in 0..64 {
            let mut bytes = good;
            bytes[bit / 8] ^= 0x80 >> (bit % 8);
            let verdict = parse(&bytes);
            match bit {
                4 => assert_eq!(verdict, Err(HeaderError::NoVni)),
                32..56 => assert!(verdict.is_ok(), "bit {bit} belongs to the VNI"),
                _ => assert_eq!(verdict, Err(HeaderError::Reserved), "bit {bit}"),
            }
        }
    }

    #[test]
    fn the_encapsulation_is_vxlan_then_ethernet() {
        let own = MacAddr([2, 0, 0, 0, 0, 1]);
        let peer = MacAddr([2, 0, 0, 0, 0, 2]);
        let bytes = EncapTemplate::ipv4(Vni::DEFAULT, own).towards(peer);
        assert_eq!(
            bytes,
            [
                8, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0
            ]
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(number in 0u64..1 << 24) {
            let vni = Vni::try_from(number).unwrap();
            prop_assert_eq!(parse(&header(vni)), Ok(vni));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let verdict = parse(&bytes);
            prop_assert_eq!(verdict == Err(HeaderError::Short), bytes.len() < HEADER_LEN);
        }
    }
}
