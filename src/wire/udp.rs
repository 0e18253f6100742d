//! UDP header: view (RFC 768).

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// A UDP datagram: header and payload.
#[derive(Clone, Copy, Debug)]
pub struct UdpDatagram<'a> {
    header: &'a [u8; HEADER_LEN],
    payload: &'a [u8],
}

impl<'a> UdpDatagram<'a> {
    /// Views `bytes`, which begin with the header. `None` if the length field is below 8
    /// or beyond `bytes`; bytes after it are not part of the payload.
    #[inline]
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let payload = rest.get(..len.checked_sub(HEADER_LEN)?)?;
        Some(Self { header, payload })
    }

    /// Destination port.
    #[inline]
    #[must_use]
    pub const fn dst_port(&self) -> u16 {
        u16::from_be_bytes([self.header[2], self.header[3]])
    }

    /// The length field: bytes of header and payload.
    #[inline]
    #[must_use]
    pub const fn len_field(&self) -> u16 {
        u16::from_be_bytes([self.header[4], self.header[5]])
    }

    /// The checksum field as it lies; `[0, 0]` is "none".
    #[inline]
    #[must_use]
    pub const fn checksum(&self) -> [u8; 2] {
        [self.header[6], self.header[7]]
    }

    /// The payload.
    #[inline]
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// A UDP header, for patching.
#[derive(Debug)]
pub struct UdpHeaderMut<'a>(&'a mut [u8; HEADER_LEN]);

impl<'a> UdpHeaderMut<'a> {
    /// The header at the front of `bytes`; `None` if they are fewer than 8.
    #[inline]
    #[must_use]
    pub fn parse(bytes: &'a mut [u8]) -> Option<Self> {
        bytes.first_chunk_mut().map(Self)
    }

    /// Sets the length field: bytes of header and payload.
    #[inline]
    pub fn set_len(&mut self, len: u16) {
        self.0[4..6].copy_from_slice(&len.to_be_bytes());
    }

    /// Sets the checksum field.
    #[inline]
    pub fn set_checksum(&mut self, check: [u8; 2]) {
        self.0[6..8].copy_from_slice(&check);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATAGRAM: [u8; 11] = [0x21, 0x18, 0x00, 0x35, 0, 10, 0xab, 0xcd, 1, 2, 0xff];

    #[test]
    fn fields_are_where_rfc_768_puts_them() {
        let udp = UdpDatagram::parse(&DATAGRAM).unwrap();
        assert_eq!(udp.dst_port(), 53);
        assert_eq!((udp.len_field(), udp.checksum()), (10, [0xab, 0xcd]));
        assert_eq!(
            udp.payload(),
            [1, 2],
            "the byte behind the length is padding"
        );
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        for len in 0..10 {
            assert!(
                UdpDatagram::parse(&DATAGRAM[..len]).is_none(),
                "{len} bytes"
            );
        }
        let mut short = DATAGRAM;
        short[5] = 7;
        assert!(UdpDatagram::parse(&short).is_none());
    }

    #[test]
    fn patches_touch_their_field_only() {
        let mut bytes = DATAGRAM;
        let mut header = UdpHeaderMut::parse(&mut bytes).unwrap();
        header.set_len(0x0102);
        header.set_checksum([0x11, 0x22]);
        assert_eq!(
            bytes,
            [0x21, 0x18, 0x00, 0x35, 1, 2, 0x11, 0x22, 1, 2, 0xff]
        );
    }
}
