//! Frames with one error each: we drop what the kernel's vxlan and the IP layer behind it drop,
//! and accept what they accept.

use uvxlan::dataplane::Dataplane;
use uvxlan::wire::checksum::Sum;
use uvxlan::wire::vxlan::ENCAP_LEN;

use crate::support::receiving::Receiving;

use crate::support::need;
use crate::support::wire::{Kind, OUR_MAC, possible};

/// A name, the error, and whether the packet still arrives.
type Case = (String, Box<dyn Fn(&mut Vec<u8>)>, bool);

fn case(name: &str, change: impl Fn(&mut Vec<u8>) + 'static, arrives: bool) -> Case {
    (name.to_owned(), Box::new(change), arrives)
}

fn set_header_checksum(frame: &mut [u8]) {
    let header = &mut frame[ENCAP_LEN..ENCAP_LEN + 20];
    header[10..12].fill(0);
    let check = Sum::of(header).finish();
    header[10..12].copy_from_slice(&check);
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("nothing", |_| (), true),
        case(
            "padding behind the packet",
            |frame| frame.extend([0; 9]),
            true,
        ),
        case(
            "another inner destination MAC",
            |frame| frame[9] ^= 0x10,
            false,
        ),
        case(
            "broadcast inner destination MAC",
            |frame| frame[8..14].fill(0xff),
            false,
        ),
        case(
            "multicast inner destination MAC",
            |frame| frame[8] |= 1,
            false,
        ),
        case(
            "our own MAC as inner source",
            |frame| frame[14..20].copy_from_slice(&OUR_MAC.0),
            false,
        ),
        case("another inner source MAC", |frame| frame[19] ^= 1, true),
        case("ARP", |frame| frame[20..22].copy_from_slice(&[8, 6]), false),
        case(
            "IPv6",
            |frame| frame[20..22].copy_from_slice(&[0x86, 0xdd]),
            false,
        ),
        case(
            "VLAN tag",
            |frame| {
                frame.splice(20..20, [0x81, 0, 0, 7]);
            },
            false,
        ),
        case("IP version 5", |frame| frame[ENCAP_LEN] = 0x55, false),
        case("header length 16", |frame| frame[ENCAP_LEN] = 0x44, false),
        case(
            "total length below the header's",
            |frame| {
                frame[ENCAP_LEN + 3] = 19;
                set_header_checksum(frame);
            },
            false,
        ),
        case(
            "total length beyond the frame",
            |frame| {
                frame[ENCAP_LEN + 2] = 5;
                set_header_checksum(frame);
            },
            false,
        ),
        case(
            "wrong header checksum",
            |frame| frame[ENCAP_LEN + 10] ^= 1,
            false,
        ),
        case(
            "the last hop",
            |frame| {
                frame[ENCAP_LEN + 8] = 1;
                set_header_checksum(frame);
            },
            false,
        ),
        case(
            "loopback as inner source",
            |frame| {
                frame[ENCAP_LEN + 12..ENCAP_LEN + 16].copy_from_slice(&[127, 0, 0, 1]);
                set_header_checksum(frame);
            },
            false,
        ),
    ];
    // All 64 bits of the VXLAN header: the I flag, the VNI, and the reserved ones.
    for bit in 0..64 {
        let change = move |frame: &mut Vec<u8>| frame[bit / 8] ^= 0x80 >> (bit % 8);
        cases.push(case(
            &format!("bit {bit} of the VXLAN header"),
            change,
            false,
        ));
    }
    cases
}

/// Names of the cases that arrive.
fn verdicts(kind: Kind, cases: &[Case]) -> Vec<String> {
    let receiving = Receiving::new(kind);
    let frames: Vec<_> = cases
        .iter()
        .zip(1..)
        .map(|((_, change, _), number)| {
            let mut frame = receiving.frame(number, 0);
            change(&mut frame);
            (frame, 0)
        })
        .collect();
    let arrived = receiving.send(&frames);
    let named = arrived
        .iter()
        .map(|(number, _)| cases[*number as usize - 1].0.clone());
    named.collect()
}

#[test]
fn frames_with_one_fault_are_judged_as_by_the_kernel() {
    need!(possible());
    let cases = cases();
    let expected: Vec<_> = cases
        .iter()
        .filter(|(.., arrives)| *arrives)
        .map(|(name, ..)| name.clone())
        .collect();
    assert_eq!(verdicts(Kind::Kernel, &cases), expected, "the kernel");
    assert_eq!(verdicts(Kind::Ours, &cases), expected, "ours");
}

#[test]
fn a_frame_cut_short_anywhere_is_dropped_and_counted() {
    need!(possible());
    let mut seen = Vec::new();
    for kind in [Kind::Kernel, Kind::Ours] {
        let receiving = Receiving::new(kind);
        let before = receiving.dataplane().map(Dataplane::totals);
        let whole = receiving.frame(1, 0);
        let frames: Vec<_> = (0..whole.len())
            .map(|len| (whole[..len].to_vec(), 0))
            .collect();
        assert_eq!(receiving.send(&frames), [], "{kind:?}");
        if let (Some(dataplane), Some(before)) = (receiving.dataplane(), before) {
            seen.push((before, dataplane.totals(), frames.len() as u64));
        }
    }
    for (before, totals, sent) in seen {
        use uvxlan::dataplane::counters::{Counter, Kind};
        let read = totals.get(Counter::UdpRead) - before.get(Counter::UdpRead);
        assert_eq!(read, sent + 1, "{totals}");
        assert_eq!(totals.get(Counter::InShort), sent, "{totals}");
        assert_eq!(totals.sum(Kind::DropIn), sent, "{totals}");
    }
}
