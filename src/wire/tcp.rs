//! TCP header: view (RFC 9293 section 3.1).

use std::fmt;

/// Bytes of a header without options.
pub const MIN_HEADER_LEN: usize = 20;

/// Where things are in the fixed header.
mod field {
    pub(super) const SEQ: usize = 4;
    pub(super) const OFFSET: usize = 12;
    pub(super) const FLAGS: usize = 13;
    pub(super) const WINDOW: usize = 14;
    pub(super) const CHECKSUM: usize = 16;
}

/// The eight flags of byte 13.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronize sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment field counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);
    /// ECN echo (RFC 3168).
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced (RFC 3168).
    pub const CWR: Self = Self(0x80);

    /// Whether all flags of `other` are set.
    #[inline]
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags and those of `other`.
    #[inline]
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These flags but not those of `other`.
    #[inline]
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LETTERS: &[u8; 8] = b"FSRPAUEC";
        write!(f, "Flags(")?;
        for (bit, letter) in LETTERS.iter().enumerate() {
            if self.0 & (1 << bit) != 0 {
                write!(f, "{}", char::from(*letter))?;
            }
        }
        write!(f, ")")
    }
}

/// A TCP segment: header, options, payload.
#[derive(Clone, Copy, Debug)]
pub struct TcpSegment<'a> {
    fixed: &'a [u8; MIN_HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

impl<'a> TcpSegment<'a> {
    /// Views `bytes`, which begin with the header and end with the payload. `None` if the
    /// header, whose length the data offset tells, does not fit.
    #[inline]
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (fixed, rest) = bytes.split_first_chunk::<MIN_HEADER_LEN>()?;
        let header_len = usize::from(fixed[field::OFFSET] >> 4) * 4;
        let options_len = header_len.checked_sub(MIN_HEADER_LEN)?;
        let (options, payload) = rest.split_at_checked(options_len)?;
        Some(Self {
            fixed,
            options,
            payload,
        })
    }

    /// Sequence number of the first payload byte.
    #[inline]
    #[must_use]
    pub fn seq(&self) -> u32 {
        self.word(field::SEQ)
    }

    /// Bytes of header and options, 20 to 60.
    #[inline]
    #[must_use]
    pub const fn header_len(&self) -> usize {
        MIN_HEADER_LEN + self.options.len()
    }

    /// The low nibble of byte 12: reserved bits and the AE flag of accurate ECN.
    #[inline]
    #[must_use]
    pub const fn reserved(&self) -> u8 {
        self.fixed[field::OFFSET] & 0x0f
    }

    /// The flags.
    #[inline]
    #[must_use]
    pub const fn flags(&self) -> Flags {
        Flags(self.fixed[field::FLAGS])
    }

    /// Receive window, unscaled.
    #[inline]
    #[must_use]
    pub const fn window(&self) -> u16 {
        u16::from_be_bytes([self.fixed[field::WINDOW], self.fixed[field::WINDOW + 1]])
    }

    /// The checksum field as it lies.
    #[inline]
    #[must_use]
    pub const fn checksum(&self) -> [u8; 2] {
        [self.fixed[field::CHECKSUM], self.fixed[field::CHECKSUM + 1]]
    }

    /// The options, padding included.
    #[inline]
    #[must_use]
    pub const fn options(&self) -> &'a [u8] {
        self.options
    }

    /// The payload.
    #[inline]
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    #[inline]
    fn word(&self, at: usize) -> u32 {
        let bytes = self.fixed;
        u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    }
}

/// The fixed part of a TCP header, for patching.
#[derive(Debug)]
pub struct TcpHeaderMut<'a>(&'a mut [u8; MIN_HEADER_LEN]);

impl<'a> TcpHeaderMut<'a> {
    /// The header at the front of `bytes`; `None` if they are fewer than 20.
    #[inline]
    #[must_use]
    pub fn parse(bytes: &'a mut [u8]) -> Option<Self> {
        bytes.first_chunk_mut().map(Self)
    }

    /// Sets the sequence number.
    #[inline]
    pub fn set_seq(&mut self, seq: u32) {
        self.0[field::SEQ..field::SEQ + 4].copy_from_slice(&seq.to_be_bytes());
    }

    /// Sets the flags.
    #[inline]
    pub fn set_flags(&mut self, flags: Flags) {
        self.0[field::FLAGS] = flags.0;
    }

    /// Sets the checksum field.
    #[inline]
    pub fn set_checksum(&mut self, check: [u8; 2]) {
        self.0[field::CHECKSUM..field::CHECKSUM + 2].copy_from_slice(&check);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: [u8; 26] = [
        0x1f, 0x90, 0xc0, 0x01, 1, 2, 3, 4, 5, 6, 7, 8, 0x61, 0x18, 0x10, 0x20, 0xab, 0xcd, 0,
        9, //
        1, 1, 1, 0, 0xaa, 0xbb,
    ];

    #[test]
    fn fields_are_where_rfc_9293_puts_them() {
        let tcp = TcpSegment::parse(&SEGMENT).unwrap();
        assert_eq!(tcp.seq(), 0x0102_0304);
        assert_eq!((tcp.header_len(), tcp.reserved()), (24, 1));
        assert_eq!(tcp.flags(), Flags::ACK.with(Flags::PSH));
        assert_eq!(tcp.window(), 0x1020);
        assert_eq!(tcp.checksum(), [0xab, 0xcd]);
        assert_eq!(
            (tcp.options(), tcp.payload()),
            (&[1, 1, 1, 0][..], &[0xaa, 0xbb][..])
        );
    }

    #[test]
    fn headers_that_do_not_fit_are_refused() {
        for len in 0..24 {
            assert!(TcpSegment::parse(&SEGMENT[..len]).is_none(), "{len} bytes");
        }
        let mut short = SEGMENT;
        short[12] = 0x40;
        assert!(TcpSegment::parse(&short).is_none(), "data offset below 5");
    }

    #[test]
    fn patches_touch_their_field_only() {
        let mut bytes = SEGMENT;
        let mut header = TcpHeaderMut::parse(&mut bytes).unwrap();
        header.set_seq(0x0a0b_0c0d);
        header.set_flags(Flags::ACK);
        header.set_checksum([0x11, 0x22]);
        let mut expected = SEGMENT;
        expected[4..8].copy_from_slice(&[0x0a, 0x0b, 0x0c, 0x0d]);
        expected[13] = 0x10;
        expected[16..18].copy_from_slice(&[0x11, 0x22]);
        assert_eq!(bytes, expected);
        assert!(TcpHeaderMut::parse(&mut bytes[..19]).is_none());
    }

    #[test]
    fn flags_print_as_letters() {
        assert_eq!(format!("{:?}", Flags::ACK.with(Flags::SYN)), "Flags(SA)");
        assert!(!Flags::ACK.contains(Flags::ACK.with(Flags::SYN)));
        assert_eq!(Flags(0xff).without(Flags::FIN), Flags(0xfe));
    }
}
