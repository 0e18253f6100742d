//! ECN through the tunnel: all sixteen pairs, combined as the kernel does.

use crate::support::receiving::Receiving;

use crate::support::need;
use crate::support::wire::{Kind, possible};

/// The result for each outer and inner codepoint; `None` is dropped.
fn matrix(kind: Kind) -> Vec<Option<u8>> {
    let receiving = Receiving::new(kind);
    let pairs = (0..16u8).map(|pair| (pair >> 2, pair & 3));
    let frames: Vec<_> = pairs
        .map(|(outer, inner)| {
            let number = 1 + u32::from(outer << 2 | inner);
            (receiving.frame(number, inner), outer)
        })
        .collect();
    let arrived = receiving.send(&frames);
    (1..=16)
        .map(|wanted| {
            let found = arrived.iter().find(|(number, _)| *number == wanted);
            found.map(|(_, tos)| *tos)
        })
        .collect()
}

#[test]
fn ecn_marks_combine_as_in_the_kernel() {
    need!(possible());
    let ours = matrix(Kind::Ours);
    assert_eq!(ours, matrix(Kind::Kernel), "ours, then the kernel's");
    // RFC 6040 section 4.2; rows are outer Not-ECT, ECT(1), ECT(0), CE.
    let expected = [
        [Some(0), Some(1), Some(2), Some(3)],
        [Some(0), Some(1), Some(1), Some(3)],
        [Some(0), Some(1), Some(2), Some(3)],
        [None, Some(3), Some(3), Some(3)],
    ];
    assert_eq!(ours, expected.concat());
}
