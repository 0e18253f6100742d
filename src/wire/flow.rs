//! A hash of an inner flow: it chooses the outer source port, so that routers and
//! receivers spread flows (RFC 7348 section 5), and keeps each flow in order.

use super::ipv4::{self, Packet};

/// Hashes addresses, protocol and, in packets that are no fragments, ports.
///
/// All fragments of a flow hash alike (addresses and protocol only), the first one too,
/// as in the kernel's flow dissector. The same flow gives the same value on every host
/// and in every run.
#[must_use]
#[inline]
pub fn hash(packet: &Packet<'_>) -> u32 {
    let source = u64::from(packet.source().to_bits());
    let destination = u64::from(packet.destination().to_bits());
    let protocol = packet.protocol();
    let ports = match protocol {
        ipv4::PROTOCOL_TCP | ipv4::PROTOCOL_UDP if !packet.is_fragment() => packet
            .payload()
            .first_chunk::<4>()
            .map_or(0, |bytes| u64::from(u32::from_be_bytes(*bytes))),
        _ => 0,
    };
    let mixed = mix(mix(source << 32 | destination) ^ (ports << 8 | u64::from(protocol)));
    (mixed >> 32) as u32
}

/// Which of `buckets` a hash falls in, evenly (the kernel's `reciprocal_scale`).
#[must_use]
#[inline]
pub const fn bucket(hash: u32, buckets: usize) -> usize {
    ((hash as u64 * buckets as u64) >> 32) as usize
}

/// The finaliser of MurmurHash3, folded: every input bit reaches every output bit.
#[inline]
const fn mix(value: u64) -> u64 {
    let mut x = value;
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn udp(source_port: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 1, 2], 64)
            .udp(source_port, 53)
            .write(&mut bytes, b"x")
            .unwrap();
        bytes
    }

    fn hash_of(bytes: &[u8]) -> u32 {
        hash(&Packet::new_checked(bytes).unwrap())
    }

    #[test]
    fn flows_spread_over_all_buckets() {
        let mut seen = [0u32; 8];
        for port in 10_000..12_000 {
            seen[bucket(hash_of(&udp(port)), 8)] += 1;
        }
        for count in seen {
            assert!((150..350).contains(&count), "uneven: {seen:?}");
        }
    }

    #[test]
    fn fragments_of_a_flow_hash_alike() {
        let mut first = udp(1);
        first[6] |= 0x20; // more fragments
        let mut other = udp(2);
        other[7] = 10; // offset
        assert_eq!(hash_of(&first), hash_of(&other));
        assert_ne!(hash_of(&udp(1)), hash_of(&udp(2)));
    }

    #[test]
    fn a_bucket_is_always_inside() {
        for buckets in 1..=64 {
            assert!(bucket(u32::MAX, buckets) < buckets);
            assert_eq!(bucket(0, buckets), 0);
        }
    }
}
