//! IPv6 header: view (RFC 8200).

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;

/// Next header: hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Next header: routing.
pub const ROUTING: u8 = 43;
/// Next header: fragment.
pub const FRAGMENT: u8 = 44;
/// Next header: destination options.
pub const DESTINATION_OPTIONS: u8 = 60;

/// An IPv6 packet: fixed header and what follows it.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6Packet<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

/// What a packet carries behind its extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// The protocol number: 6 TCP, 17 UDP, 58 ICMPv6, or whatever the chain ended with.
    pub protocol: u8,
    /// Bytes from the start of the packet to that protocol's header.
    pub offset: usize,
    /// Fragment offset in bytes and whether more fragments follow, if there is a fragment
    /// header.
    pub fragment: Option<(u16, bool)>,
    /// Whether a routing header was passed, which changes the destination that the
    /// pseudo-header counts (RFC 8200 section 8.1).
    pub routed: bool,
}

impl<'a> Ipv6Packet<'a> {
    /// Views `bytes`. `None` if they are no IPv6 packet or shorter than its payload length
    /// says; bytes behind that length are left out. A jumbogram (payload length 0 with
    /// data behind it) counts as empty.
    #[inline]
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        Some(Self {
            header,
            payload: rest.get(..len)?,
        })
    }

    /// Bytes of the whole packet.
    #[inline]
    #[must_use]
    pub const fn total_len(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }

    /// The protocol of the first header behind the fixed one.
    #[inline]
    #[must_use]
    pub const fn next_header(&self) -> u8 {
        self.header[6]
    }

    /// Source and destination address, as they lie.
    #[inline]
    #[must_use]
    pub fn addresses(&self) -> &'a [u8] {
        &self.header[8..40]
    }

    /// What follows the fixed header, extension headers included.
    #[inline]
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Walks over hop-by-hop, routing, destination and fragment headers. `None` if one of
    /// them does not fit. Behind a fragment header of another offset than 0 there is no
    /// protocol header, only data.
    #[must_use]
    pub fn transport(&self) -> Option<Transport> {
        let mut found = Transport {
            protocol: self.next_header(),
            offset: HEADER_LEN,
            fragment: None,
            routed: false,
        };
        let mut rest = self.payload;
        loop {
            let len = match found.protocol {
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                    found.routed |= found.protocol == ROUTING;
                    (usize::from(*rest.get(1)?) + 1) * 8
                }
                FRAGMENT => {
                    let word = u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]);
                    found.fragment = Some((word & !7, word & 1 == 1));
                    8
                }
                _ => return Some(found),
            };
            found.protocol = *rest.first()?;
            found.offset += len;
            rest = rest.get(len..)?;
            if matches!(found.fragment, Some((offset, _)) if offset > 0) {
                return Some(found);
            }
        }
    }
}

/// An IPv6 fixed header, for patching.
#[derive(Debug)]
pub struct Ipv6HeaderMut<'a>(&'a mut [u8; HEADER_LEN]);

impl<'a> Ipv6HeaderMut<'a> {
    /// The header at the front of `bytes`; `None` if they are fewer than 40.
    #[inline]
    #[must_use]
    pub fn parse(bytes: &'a mut [u8]) -> Option<Self> {
        bytes.first_chunk_mut().map(Self)
    }

    /// Sets the payload length: bytes behind the fixed header.
    #[inline]
    pub fn set_payload_len(&mut self, len: u16) {
        self.0[4..6].copy_from_slice(&len.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x6a, 0xb1, 0x23, 0x45];
        bytes.extend((payload.len() as u16).to_be_bytes());
        bytes.extend([next, 63]);
        bytes.extend(1..=32);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn fields_are_where_rfc_8200_puts_them() {
        let mut bytes = packet(17, &[9; 12]);
        bytes.push(0xff);
        let ip = Ipv6Packet::parse(&bytes).unwrap();
        assert_eq!(ip.next_header(), 17);
        assert!(ip.addresses().iter().copied().eq(1..=32));
        assert_eq!((ip.total_len(), ip.payload()), (52, &[9; 12][..]));
        let plain = Transport {
            protocol: 17,
            offset: 40,
            fragment: None,
            routed: false,
        };
        assert_eq!(ip.transport(), Some(plain));
    }

    #[test]
    fn short_and_foreign_packets_are_refused() {
        let bytes = packet(17, &[9; 12]);
        for len in 0..bytes.len() {
            assert!(Ipv6Packet::parse(&bytes[..len]).is_none(), "{len} bytes");
        }
        let mut v4 = bytes.clone();
        v4[0] = 0x45;
        assert!(Ipv6Packet::parse(&v4).is_none());
    }

    #[test]
    fn extension_headers_are_walked() {
        let mut chain = vec![ROUTING, 0, 0, 0, 0, 0, 0, 0];
        chain.extend([DESTINATION_OPTIONS, 1]);
        chain.extend([0; 14]);
        chain.extend([FRAGMENT, 0, 0, 0, 0, 0, 0, 0]);
        chain.extend([6, 0, 0, 1, 0, 0, 0, 7]);
        chain.extend([0x55; 20]);
        let bytes = packet(HOP_BY_HOP, &chain);
        let found = Ipv6Packet::parse(&bytes).unwrap().transport().unwrap();
        let expected = Transport {
            protocol: 6,
            offset: 40 + 8 + 16 + 8 + 8,
            fragment: Some((0, true)),
            routed: true,
        };
        assert_eq!(found, expected);
        let cut = packet(HOP_BY_HOP, &chain[..20]);
        assert_eq!(Ipv6Packet::parse(&cut).unwrap().transport(), None);
    }

    #[test]
    fn data_of_later_fragments_is_not_walked() {
        let bytes = packet(FRAGMENT, &[HOP_BY_HOP, 0, 0x05, 0xa9, 0, 0, 0, 7, 0, 0xff]);
        let found = Ipv6Packet::parse(&bytes).unwrap().transport().unwrap();
        assert_eq!(found.fragment, Some((0x05a8, true)));
        assert_eq!(found.offset, 48);
    }
}
