//! Prints the VXLAN frames of a capture, and whether a VTEP would accept them.
//!
//! ```text
//! sudo tcpdump -ni eth0 -w frames.pcap udp port 8472
//! cargo run --example read_pcap -- frames.pcap
//! ```
//!
//! Reads classic pcap files (not pcapng) with Ethernet or raw IPv4.

use anyhow::{Context, bail};
use uvxlan::wire::ipv4::{self, Packet};
use uvxlan::wire::{ethernet, vxlan};

const LINKTYPE_ETHERNET: u32 = 1;
const LINKTYPE_RAW: u32 = 101;
const UDP_HEADER_LEN: usize = 8;

fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).context("usage: read_pcap FILE")?;
    let bytes = std::fs::read(&path).with_context(|| format!("reading {path}"))?;
    let (link_type, records) = records(&bytes)?;
    for (number, frame) in records.enumerate() {
        println!("{:>5}  {}", number + 1, describe(link_type, frame));
    }
    Ok(())
}

/// Returns the link type and the frames of a pcap file of either byte order.
fn records(file: &[u8]) -> anyhow::Result<(u32, impl Iterator<Item = &[u8]>)> {
    let header: &[u8; 24] = file.first_chunk().context("shorter than a pcap header")?;
    let little = match header[..4] {
        [0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1] => true,
        [0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d] => false,
        _ => bail!("not a pcap file (convert pcapng with `editcap -F pcap`)"),
    };
    let word = move |bytes: &[u8], at: usize| -> Option<u32> {
        let word = *bytes.get(at..)?.first_chunk()?;
        Some(if little {
            u32::from_le_bytes(word)
        } else {
            u32::from_be_bytes(word)
        })
    };
    let link_type = word(header, 20).context("no link type")?;
    let mut rest = &file[24..];
    let records = std::iter::from_fn(move || {
        let captured = word(rest, 8)? as usize;
        let frame = rest.get(16..)?.get(..captured)?;
        rest = &rest[16 + captured..];
        Some(frame)
    });
    Ok((link_type, records))
}

fn describe(link_type: u32, frame: &[u8]) -> String {
    let outer = match link_type {
        LINKTYPE_ETHERNET => frame.get(ethernet::HEADER_LEN..).unwrap_or(&[]),
        LINKTYPE_RAW => frame,
        other => return format!("link type {other} is not read here"),
    };
    let outer = match Packet::new_checked(outer) {
        Ok(packet) if packet.protocol() == ipv4::PROTOCOL_UDP => packet,
        Ok(packet) => return format!("IP protocol {}, not UDP", packet.protocol()),
        Err(error) => return error.to_string(),
    };
    let Some(payload) = outer.payload().get(UDP_HEADER_LEN..) else {
        return "truncated UDP header".to_owned();
    };
    let between = format!("{} -> {}", outer.source(), outer.destination());
    let vni = match vxlan::parse(payload) {
        Ok(vni) => vni,
        Err(error) => return format!("{between}: refused: {error}"),
    };
    let frame = &payload[vxlan::HEADER_LEN..];
    let Some(header) = ethernet::parse(frame) else {
        return format!("{between}: vni {vni}, truncated inner Ethernet header");
    };
    let inner = match Packet::new_checked(&frame[ethernet::HEADER_LEN..]) {
        Ok(packet) => format!(
            "{} -> {} ttl {} protocol {} length {}",
            packet.source(),
            packet.destination(),
            packet.ttl(),
            packet.protocol(),
            packet.total_len()
        ),
        Err(error) => format!("ethertype {:#06x}: {error}", header.ethertype),
    };
    format!(
        "{between}: vni {vni}, {} -> {}: {inner}",
        header.source, header.destination
    )
}
