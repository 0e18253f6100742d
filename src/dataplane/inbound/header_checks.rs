//! Checks the headers of a frame from the tunnel.

use crate::dataplane::counters::Counter;
use crate::wire::ipv4::{Packet, PacketError};
use crate::wire::vxlan::{self, HEADER_LEN, HeaderError};
use crate::wire::{MacAddr, Vni, ethernet};

/// This node's VTEP: the network and the MAC address that frames must be addressed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalVtep {
    /// The overlay network.
    pub vni: Vni,
    /// The published MAC address.
    pub mac: MacAddr,
}

/// Checks a UDP payload as the kernel's `vxlan_rcv` and its IP layer do. Returns the inner
/// packet without padding.
///
/// # Errors
/// The counter of the first check that failed.
#[inline]
pub fn check_frame<'a>(vtep: &LocalVtep, frame: &'a [u8]) -> Result<Packet<'a>, Counter> {
    let vni = vxlan::parse(frame).map_err(|error| match error {
        HeaderError::Short => Counter::InShort,
        HeaderError::NoVni => Counter::InNoVni,
        HeaderError::Reserved => Counter::InReservedBits,
    })?;
    if vni != vtep.vni {
        return Err(Counter::InOtherVni);
    }
    let inner = &frame[HEADER_LEN..];
    let ethernet = ethernet::parse(inner).ok_or(Counter::InShort)?;
    if ethernet.source == vtep.mac {
        return Err(Counter::InOwnMac);
    }
    if ethernet.destination != vtep.mac {
        return Err(Counter::InOtherMac);
    }
    if ethernet.ethertype != ethernet::ETHERTYPE_IPV4 {
        return Err(Counter::InNotIpv4);
    }
    let packet = Packet::new_checked(&inner[ethernet::HEADER_LEN..]);
    let packet = packet.map_err(|error| match error {
        PacketError::Truncated => Counter::InShort,
        PacketError::Version | PacketError::HeaderLength => Counter::InMalformed,
    })?;
    if !packet.is_header_undamaged() {
        return Err(Counter::InHeaderChecksum);
    }
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::vxlan::EncapTemplate;
    use proptest::prelude::*;

    const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn vtep() -> LocalVtep {
        LocalVtep {
            vni: Vni::DEFAULT,
            mac: OWN,
        }
    }

    fn frame() -> Vec<u8> {
        let mut frame = EncapTemplate::ipv4(Vni::DEFAULT, PEER)
            .towards(OWN)
            .to_vec();
        etherparse::PacketBuilder::ipv4([10, 0, 1, 2], [10, 0, 0, 2], 63)
            .udp(1, 2)
            .write(&mut frame, b"payload")
            .unwrap();
        frame
    }

    fn refused(frame: &[u8]) -> Option<Counter> {
        check_frame(&vtep(), frame).err()
    }

    #[test]
    fn each_fault_has_its_own_counter() {
        assert_eq!(refused(&frame()), None);
        let cases: [(usize, u8, Counter); 11] = [
            (0, 0x00, Counter::InNoVni),
            (0, 0x88, Counter::InReservedBits),
            (7, 0x01, Counter::InReservedBits),
            (6, 0x02, Counter::InOtherVni),
            (13, 0x09, Counter::InOtherMac),
            (8, 0xff, Counter::InOtherMac),
            (21, 0x06, Counter::InNotIpv4),
            (22, 0x65, Counter::InMalformed),
            (22, 0x44, Counter::InMalformed),
            (32, 0xff, Counter::InHeaderChecksum),
            (41, 0xff, Counter::InHeaderChecksum),
        ];
        for (at, value, expected) in cases {
            let mut bytes = frame();
            bytes[at] = value;
            assert_eq!(refused(&bytes), Some(expected), "byte {at} = {value:#x}");
        }
        let mut looped = frame();
        looped[14..20].copy_from_slice(&OWN.0);
        assert_eq!(refused(&looped), Some(Counter::InOwnMac));
    }

    #[test]
    fn every_truncation_is_refused_and_padding_is_cut() {
        let whole = frame();
        for cut in 0..whole.len() {
            assert_eq!(
                refused(&whole[..cut]),
                Some(Counter::InShort),
                "cut at {cut}"
            );
        }
        let mut padded = whole.clone();
        padded.extend([0; 18]);
        let packet = check_frame(&vtep(), &padded).unwrap();
        assert_eq!(packet.bytes(), &whole[22..]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = check_frame(&vtep(), &bytes);
            let mut good_head = frame();
            good_head.truncate(22);
            good_head.extend(bytes);
            let _ = check_frame(&vtep(), &good_head);
        }
    }
}
