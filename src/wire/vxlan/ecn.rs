//! Explicit congestion notification over the tunnel, as the kernel's vxlan does it
//! (`include/net/inet_ecn.h`; RFC 3168 full functionality on the way out, RFC 6040 on
//! the way in).

/// The two low bits of the type of service byte.
pub const MASK: u8 = 0b11;
/// Not capable of ECN.
pub const NOT_ECT: u8 = 0b00;
/// Capable, codepoint 1.
pub const ECT_1: u8 = 0b01;
/// Capable, codepoint 0.
pub const ECT_0: u8 = 0b10;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// The outer codepoint for an inner one: a copy, but CE becomes ECT(0)
/// (`INET_ECN_encapsulate`).
#[must_use]
#[inline]
pub const fn encapsulate(inner: u8) -> u8 {
    match inner & MASK {
        CE => ECT_0,
        other => other,
    }
}

/// What becomes of a packet whose outer header carried `outer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decapsulated {
    /// The inner codepoint stays as it is.
    Unchanged,
    /// The inner codepoint becomes this one.
    Set(u8),
    /// Congestion was marked on a flow that cannot hear of it: drop (RFC 6040 section 4.2).
    Drop,
}

/// Combines outer and inner codepoint (`INET_ECN_decapsulate`).
#[must_use]
#[inline]
pub const fn decapsulate(outer: u8, inner: u8) -> Decapsulated {
    match (outer & MASK, inner & MASK) {
        (CE, NOT_ECT) => Decapsulated::Drop,
        (CE, ECT_0 | ECT_1) => Decapsulated::Set(CE),
        (ECT_1, ECT_0) => Decapsulated::Set(ECT_1),
        _ => Decapsulated::Unchanged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Decapsulated::{Drop, Set, Unchanged};

    #[test]
    fn encapsulation_copies_all_but_congestion() {
        assert_eq!(
            [0, 1, 2, 3].map(encapsulate),
            [NOT_ECT, ECT_1, ECT_0, ECT_0]
        );
        assert_eq!(encapsulate(0b1011_1001), ECT_1, "DSCP stays inside");
    }

    #[test]
    fn decapsulation_follows_the_table_of_rfc_6040() {
        let table = [
            // inner, [outer Not-ECT, ECT(0), ECT(1), CE]
            (NOT_ECT, [Unchanged, Unchanged, Unchanged, Drop]),
            (ECT_0, [Unchanged, Unchanged, Set(ECT_1), Set(CE)]),
            (ECT_1, [Unchanged, Unchanged, Unchanged, Set(CE)]),
            (CE, [Unchanged; 4]),
        ];
        for (inner, row) in table {
            let outers = [NOT_ECT, ECT_0, ECT_1, CE];
            assert_eq!(
                outers.map(|outer| decapsulate(outer, inner)),
                row,
                "inner {inner}"
            );
        }
    }
}
