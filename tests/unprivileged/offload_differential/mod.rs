//! Segmentation and coalescing, compared with independent, slow models of both.

mod packet;
mod properties;

use uvxlan::offload::coalesce::{Coalescer, PacketRef, Policy};
use uvxlan::wire::checksum::Checksummer;
use uvxlan::wire::vnet_hdr::VnetHdr;

/// MTU of the TUN in these tests, flannel's on Ethernet.
pub(crate) const TUN_MTU: usize = 1450;

/// A write as the kernel would get it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Written {
    pub(crate) vnet: VnetHdr,
    pub(crate) bytes: Vec<u8>,
    pub(crate) packets: usize,
}

pub(crate) fn policy() -> Policy {
    Policy::new(TUN_MTU, Checksummer::PORTABLE)
}

/// The writes for `packets` that arrive together.
pub(crate) fn coalesce(policy: Policy, packets: &[Vec<u8>]) -> Vec<Written> {
    coalesce_with(&mut Coalescer::new(policy), packets)
}

/// As [`coalesce`], with a coalescer that may have been used before.
pub(crate) fn coalesce_with(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Vec<Written> {
    let mut arena = Vec::new();
    coalescer.clear();
    let places: Vec<PacketRef> = packets
        .iter()
        .map(|packet| {
            // Outer headers separate the packets in a buffer.
            arena.extend([0xe7; 22]);
            let offset = arena.len() as u32;
            arena.extend(packet);
            PacketRef {
                offset,
                len: packet.len() as u32,
            }
        })
        .collect();
    for place in places {
        coalescer.push(&arena, place).unwrap();
    }
    coalescer
        .writes(&arena)
        .map(|write| {
            assert_eq!(write.is_merged(), write.packet_count() > 1);
            assert_eq!(write.packets().count(), write.packet_count());
            let mut bytes = write.header.to_vec();
            bytes.extend(
                write
                    .pieces()
                    .flat_map(|piece| arena[piece].iter().copied()),
            );
            Written {
                vnet: write.vnet,
                bytes,
                packets: write.packet_count(),
            }
        })
        .collect()
}
