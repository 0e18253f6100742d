//! The TCP header (RFC 9293): a checked view.

/// Length of a header without options, in bytes.
pub const MIN_HEADER_LEN: usize = 20;
/// Where the checksum lies.
pub const CHECKSUM_OFFSET: u16 = 16;
/// Flag: no more data from the sender.
pub const FIN: u8 = 0x01;
/// Flag: synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Flag: reset.
pub const RST: u8 = 0x04;
/// Flag: push.
pub const PSH: u8 = 0x08;
/// Flag: acknowledgement.
pub const ACK: u8 = 0x10;
/// Flag: urgent.
pub const URG: u8 = 0x20;
/// Flag: ECN echo.
pub const ECE: u8 = 0x40;
/// Flag: congestion window reduced.
pub const CWR: u8 = 0x80;

/// Offsets of fields that are patched.
pub mod field {
    use std::ops::Range;

    /// Sequence number.
    pub const SEQUENCE: Range<usize> = 4..8;
    /// Flags.
    pub const FLAGS: usize = 13;
    /// Checksum.
    pub const CHECKSUM: Range<usize> = 16..18;
}

/// A view of a segment whose header is whole.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a>(&'a [u8]);

impl<'a> Segment<'a> {
    /// Checks the header's length.
    #[must_use]
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < MIN_HEADER_LEN {
            return None;
        }
        let header_len = usize::from(bytes[12] >> 4) * 4;
        (header_len >= MIN_HEADER_LEN && header_len <= bytes.len()).then_some(Self(bytes))
    }

    /// Header length in bytes: 20 to 60.
    #[must_use]
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.0[12] >> 4) * 4
    }

    /// Source and destination port.
    #[must_use]
    #[inline]
    pub fn ports(&self) -> [u8; 4] {
        [self.0[0], self.0[1], self.0[2], self.0[3]]
    }

    /// Sequence number of the first payload byte.
    #[must_use]
    #[inline]
    pub fn sequence(&self) -> u32 {
        u32::from_be_bytes([self.0[4], self.0[5], self.0[6], self.0[7]])
    }

    /// Acknowledgement number.
    #[must_use]
    #[inline]
    pub fn acknowledgement(&self) -> u32 {
        u32::from_be_bytes([self.0[8], self.0[9], self.0[10], self.0[11]])
    }

    /// The flag byte.
    #[must_use]
    #[inline]
    pub fn flags(&self) -> u8 {
        self.0[field::FLAGS]
    }

    /// Window, as sent.
    #[must_use]
    #[inline]
    pub fn window(&self) -> u16 {
        u16::from_be_bytes([self.0[14], self.0[15]])
    }

    /// Checksum, as sent.
    #[must_use]
    #[inline]
    pub fn checksum(&self) -> u16 {
        u16::from_be_bytes([self.0[16], self.0[17]])
    }

    /// Options, with padding.
    #[must_use]
    #[inline]
    pub fn options(&self) -> &'a [u8] {
        &self.0[MIN_HEADER_LEN..self.header_len()]
    }

    /// What follows the header.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.0[self.header_len()..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reads_what_another_library_writes(
            ports: (u16, u16), numbers: (u32, u32), window: u16, options in 0usize..=10, fin: bool, cwr: bool,
        ) {
            let mut header = etherparse::TcpHeader::new(ports.0, ports.1, numbers.0, window);
            header.acknowledgment_number = numbers.1;
            (header.ack, header.fin, header.cwr) = (true, fin, cwr);
            header.set_options_raw(&vec![1; options * 4]).unwrap();
            let mut bytes = header.to_bytes().to_vec();
            bytes.extend(b"payload");
            let view = Segment::new_checked(&bytes).unwrap();
            prop_assert_eq!(view.header_len(), 20 + options * 4);
            prop_assert_eq!((view.sequence(), view.acknowledgement(), view.window()), (numbers.0, numbers.1, window));
            let flags = ACK | if fin { FIN } else { 0 } | if cwr { CWR } else { 0 };
            prop_assert_eq!(view.flags(), flags);
            prop_assert_eq!(view.options().len(), options * 4);
            prop_assert_eq!(view.payload(), b"payload");
            prop_assert_eq!(view.ports(), [(ports.0 >> 8) as u8, ports.0 as u8, (ports.1 >> 8) as u8, ports.1 as u8]);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(view) = Segment::new_checked(&bytes) {
                prop_assert_eq!(view.header_len() + view.payload().len(), bytes.len());
                let _ = (view.options(), view.checksum(), view.ports());
            }
        }
    }
}
