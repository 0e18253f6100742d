//! The four pcapng blocks that a capture needs (draft-ietf-opsawg-pcapng): little endian, times in
//! nanoseconds. The crates that write it are unmaintained or far larger than this; the tests read
//! the result with tshark.

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;

const OPTION_END: u16 = 0;
const OPTION_COMMENT: u16 = 1;
/// Flags of a packet: bits 0 and 1 are its direction.
const PACKET_FLAGS: u16 = 2;
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
const SECTION_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_DESCRIPTION_TEXT: u16 = 3;
const INTERFACE_RESOLUTION: u16 = 9;
/// 10 to the power of minus nine.
const NANOSECONDS: u8 = 9;
const STATISTICS_RECEIVED: u16 = 4;
const STATISTICS_DROPPED: u16 = 5;

/// Where packets were captured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interface<'a> {
    pub(super) name: &'a str,
    pub(super) description: &'a str,
    /// The first header of its packets (`LINKTYPE_…`).
    pub(super) link_type: u16,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct PacketBlock<'a> {
    /// Number of its interface, in the order of their blocks.
    pub(super) interface: u32,
    /// Unix time.
    pub(super) nanoseconds: u64,
    /// The bytes that are kept.
    pub(super) pieces: [&'a [u8]; 2],
    /// Its whole length.
    pub(super) len: usize,
    pub(super) inbound: bool,
    pub(super) comment: Option<&'a str>,
}

pub(super) fn section_header(out: &mut Vec<u8>, application: &str) {
    block(out, SECTION_HEADER, |out| {
        out.extend(BYTE_ORDER_MAGIC.to_le_bytes());
        // Version 1.0, and a section of unknown length.
        out.extend([1, 0, 0, 0]);
        out.extend(u64::MAX.to_le_bytes());
        option(out, SECTION_APPLICATION, application.as_bytes());
        option(out, OPTION_END, &[]);
    });
}

/// Interfaces are numbered in this order, from zero.
pub(super) fn interface(out: &mut Vec<u8>, interface: &Interface<'_>) {
    block(out, INTERFACE_DESCRIPTION, |out| {
        out.extend(interface.link_type.to_le_bytes());
        // Reserved, and no limit for the length of packets.
        out.extend([0; 6]);
        option(out, INTERFACE_NAME, interface.name.as_bytes());
        option(
            out,
            INTERFACE_DESCRIPTION_TEXT,
            interface.description.as_bytes(),
        );
        option(out, INTERFACE_RESOLUTION, &[NANOSECONDS]);
        option(out, OPTION_END, &[]);
    });
}

pub(super) fn packet(out: &mut Vec<u8>, packet: &PacketBlock<'_>) {
    block(out, ENHANCED_PACKET, |out| {
        let kept: usize = packet.pieces.iter().map(|piece| piece.len()).sum();
        out.extend(packet.interface.to_le_bytes());
        time(out, packet.nanoseconds);
        out.extend(number(kept).to_le_bytes());
        out.extend(number(packet.len).to_le_bytes());
        for piece in packet.pieces {
            out.extend_from_slice(piece);
        }
        pad(out, kept);
        let flags = if packet.inbound { INBOUND } else { OUTBOUND };
        option(out, PACKET_FLAGS, &flags.to_le_bytes());
        if let Some(comment) = packet.comment {
            option(out, OPTION_COMMENT, comment.as_bytes());
        }
        option(out, OPTION_END, &[]);
    });
}

/// The number of packets that an interface received, and of those that are not in the stream.
pub(super) fn statistics(
    out: &mut Vec<u8>,
    interface: u32,
    nanoseconds: u64,
    received_missed: [u64; 2],
) {
    block(out, INTERFACE_STATISTICS, |out| {
        out.extend(interface.to_le_bytes());
        time(out, nanoseconds);
        for (code, value) in [STATISTICS_RECEIVED, STATISTICS_DROPPED]
            .into_iter()
            .zip(received_missed)
        {
            option(out, code, &value.to_le_bytes());
        }
        option(out, OPTION_END, &[]);
    });
}

/// Adds up the statistics at the end of a stream: packets received and missed. The last bytes of
/// the stream suffice.
#[must_use]
pub fn totals(mut stream: &[u8]) -> Option<(u64, u64)> {
    let mut totals = None;
    while let Some((received, missed, rest)) = last_statistics(stream) {
        let (all_received, all_missed) = totals.unwrap_or((0, 0));
        totals = Some((all_received + received, all_missed + missed));
        stream = rest;
    }
    totals
}

/// The statistics block that ends here, as [`statistics`] writes it.
fn last_statistics(stream: &[u8]) -> Option<(u64, u64, &[u8])> {
    const LEN: usize = 52;
    let (rest, block) = stream.split_at_checked(stream.len().checked_sub(LEN)?)?;
    let word = |at: usize| Some(u32::from_le_bytes(*block.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(u64::from_le_bytes(*block.get(at..)?.first_chunk()?));
    let is_statistics =
        word(0)? == INTERFACE_STATISTICS && word(4)? == LEN as u32 && word(LEN - 4)? == LEN as u32;
    is_statistics.then_some((long(24)?, long(36)?, rest))
}

/// A block: type, length, body, and the length again.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let len = number(out.len() - start + 4).to_le_bytes();
    if let Some(place) = out.get_mut(start + 4..start + 8) {
        place.copy_from_slice(&len);
    }
    out.extend(len);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
    let value = value.get(..usize::from(len)).unwrap_or(value);
    out.extend(code.to_le_bytes());
    out.extend(len.to_le_bytes());
    out.extend_from_slice(value);
    pad(out, value.len());
}

/// Pads to a multiple of four.
fn pad(out: &mut Vec<u8>, len: usize) {
    out.resize(out.len() + len.next_multiple_of(4) - len, 0);
}

fn time(out: &mut Vec<u8>, nanoseconds: u64) {
    let high = (nanoseconds >> 32) as u32;
    out.extend(high.to_le_bytes());
    out.extend((nanoseconds as u32).to_le_bytes());
}

fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type and whole length of each block.
    fn blocks(mut stream: &[u8]) -> Vec<(u32, usize)> {
        let mut found = Vec::new();
        while !stream.is_empty() {
            let word = |at: usize| u32::from_le_bytes(stream[at..at + 4].try_into().unwrap());
            let len = word(4) as usize;
            assert_eq!(len % 4, 0);
            assert_eq!(
                word(len - 4) as usize,
                len,
                "the length stands at both ends"
            );
            found.push((word(0), len));
            stream = &stream[len..];
        }
        found
    }

    #[test]
    fn blocks_follow_each_other_aligned() {
        let mut stream = Vec::new();
        section_header(&mut stream, "me");
        interface(
            &mut stream,
            &Interface {
                name: "eth0",
                description: "the wire",
                link_type: 101,
            },
        );
        for len in 0..5 {
            packet(
                &mut stream,
                &PacketBlock {
                    interface: 0,
                    nanoseconds: 1,
                    pieces: [&[1], &[2, 3, 4, 5, 6][..len]],
                    len: 10,
                    inbound: true,
                    comment: Some("why"),
                },
            );
        }
        statistics(&mut stream, 0, 2, [5, 1]);
        let kinds: Vec<u32> = blocks(&stream).into_iter().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [SECTION_HEADER, 1, 6, 6, 6, 6, 6, 5]);
    }

    #[test]
    fn totals_are_found_at_the_end_and_nowhere_else() {
        let mut stream = vec![9; 7];
        assert_eq!(totals(&stream), None);
        statistics(&mut stream, 0, 2, [5, 1]);
        statistics(&mut stream, 1, 2, [u64::from(u32::MAX) + 2, 0]);
        let sum = u64::from(u32::MAX) + 7;
        assert_eq!(totals(&stream), Some((sum, 1)));
        assert_eq!(totals(&stream[3..]), Some((sum, 1)));
        assert_eq!(totals(&stream[..stream.len() - 1]), None);
    }
}
