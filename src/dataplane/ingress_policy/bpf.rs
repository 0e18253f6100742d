//! The sender check as classic BPF (`Documentation/networking/filter.rst`), which every kernel
//! has and which needs no privilege.
//!
//! The program loads the source address once and finds it in a sorted list of ranges by binary
//! search, so that its run time grows with the logarithm of the number of peers.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::sys::udp::Instruction;

/// `BPF_MAXINSNS`: longer programs are refused.
const MAX_INSTRUCTIONS: usize = 4096;

/// `BPF_LD | BPF_W | BPF_ABS`: loads the big-endian word at `k` into A.
const LOAD_WORD: u16 = 0x20;
/// `BPF_JMP | BPF_JA`: skips the next `k` instructions.
const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`; the other two compare unsigned (`BPF_JGT`, `BPF_JGE`).
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_GREATER_OR_EQUAL: u16 = 0x35;
/// `BPF_RET | BPF_K`: accepts `k` bytes of the packet; 0 drops it.
const RETURN: u16 = 0x06;

/// `SKF_NET_OFF`: offsets from here on count from the IP header. Without it, they count from
/// the UDP header in the filter of a UDP socket.
const NETWORK_HEADER: u32 = 0xfff0_0000;
/// `SKF_AD_OFF + SKF_AD_IFINDEX`: index of the interface that the packet arrived on.
const INTERFACE_INDEX: u32 = 0xffff_f000 + 8;
/// Offset of the source address in an IPv4 header (RFC 791).
const SOURCE_ADDRESS: u32 = 12;

/// Binary search ends at this many ranges, which are compared one by one.
const LEAF: usize = 16;

/// First and last address.
type Range = (u32, u32);

/// A program that accepts datagrams from these addresses and networks, received on this
/// interface if one is given, and drops all others. `None` if it would exceed
/// [`MAX_INSTRUCTIONS`], which happens from about 2,700 peers on.
pub(super) fn program(
    sources: impl IntoIterator<Item = Ipv4Addr>,
    networks: &[Ipv4Net],
    interface: Option<u32>,
) -> Option<Vec<Instruction>> {
    let single = sources.into_iter().map(|address| {
        let address = address.to_bits();
        (address, address)
    });
    let wide = networks
        .iter()
        .map(|network| (network.network().to_bits(), network.broadcast().to_bits()));
    let ranges = merged(single.chain(wide).collect());
    // Each range costs at least one instruction.
    if ranges.len() > MAX_INSTRUCTIONS {
        return None;
    }
    let mut program = Vec::new();
    if let Some(index) = interface {
        program.extend([
            plain(LOAD_WORD, INTERFACE_INDEX),
            conditional(IF_EQUAL, index, 1, 0),
            plain(RETURN, 0),
        ]);
    }
    program.push(plain(LOAD_WORD, NETWORK_HEADER + SOURCE_ADDRESS));
    program.extend(tree(&ranges));
    (program.len() <= MAX_INSTRUCTIONS).then_some(program)
}

/// Sorts ranges and joins those that touch or overlap.
fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn tree(ranges: &[Range]) -> Vec<Instruction> {
    if ranges.len() <= LEAF {
        return leaf(ranges);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (low_part, high_part) = (tree(low), tree(high));
    // Conditional jumps reach only 255 instructions.
    let mut program = vec![
        conditional(IF_GREATER_OR_EQUAL, high[0].0, 1, 0),
        plain(JUMP, high_part.len() as u32),
    ];
    program.extend(high_part);
    program.extend(low_part);
    program
}

/// Compares with each range; ends with the two possible results.
fn leaf(ranges: &[Range]) -> Vec<Instruction> {
    let length = |(first, last): &Range| if first == last { 1 } else { 2 };
    let drop_at: usize = ranges.iter().map(length).sum();
    let accept_at = drop_at + 1;
    let mut program = Vec::with_capacity(accept_at + 1);
    for (first, last) in ranges {
        // A jump counts from the instruction behind it.
        let next = program.len() + 1;
        if first == last {
            program.push(conditional(IF_EQUAL, *first, accept_at - next, 0));
        } else {
            // The ranges ascend: an address below this one is in no later range.
            program.push(conditional(IF_GREATER_OR_EQUAL, *first, 0, drop_at - next));
            program.push(conditional(IF_GREATER, *last, 0, accept_at - next - 1));
        }
    }
    program.push(plain(RETURN, 0));
    program.push(plain(RETURN, u32::MAX));
    program
}

const fn plain(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        jump_true: 0,
        jump_false: 0,
        k,
    }
}

/// Compares with `k` and skips `holds` or `fails` instructions.
const fn conditional(code: u16, k: u32, holds: usize, fails: usize) -> Instruction {
    Instruction {
        code,
        jump_true: holds as u8,
        jump_false: fails as u8,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs a program as the kernel would on a packet from this address; panics where the
    /// kernel's checker (`bpf_check_classic`) would refuse it.
    fn accepts(program: &[Instruction], source: u32) -> bool {
        accepts_on(program, 7, source)
    }

    fn accepts_on(program: &[Instruction], interface: u32, source: u32) -> bool {
        let mut accumulator = None;
        let mut at = 0;
        loop {
            let Instruction {
                code,
                jump_true,
                jump_false,
                k,
            } = program[at];
            let a = || accumulator.expect("loaded first");
            let jump = |holds: bool| usize::from(if holds { jump_true } else { jump_false });
            at += 1;
            match code {
                LOAD_WORD => {
                    accumulator = Some(match k {
                        0xfff0_000c => source,
                        0xffff_f008 => interface,
                        other => panic!("load from {other:#x}"),
                    });
                }
                JUMP => at += k as usize,
                IF_EQUAL => at += jump(a() == k),
                IF_GREATER => at += jump(a() > k),
                IF_GREATER_OR_EQUAL => at += jump(a() >= k),
                RETURN => return k > 0,
                other => panic!("{other:#x}"),
            }
        }
    }

    fn address(bits: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(bits)
    }

    #[test]
    fn without_peers_nothing_is_accepted() {
        let program = program([], &[], None).unwrap();
        assert!(!accepts(&program, 0) && !accepts(&program, u32::MAX));
    }

    #[test]
    fn hundreds_of_peers_fit_and_thousands_do_not() {
        let spread = |count: u32| program((0..count).map(|i| address(i * 7 + 1)), &[], None);
        for count in [1, 8, 9, 300, 2500] {
            let found = spread(count).unwrap();
            assert!(found.len() <= MAX_INSTRUCTIONS);
            for i in 0..count {
                assert!(accepts(&found, i * 7 + 1), "{i} of {count}");
                assert!(!accepts(&found, i * 7 + 2), "behind {i} of {count}");
            }
        }
        assert_eq!(spread(4000), None);
        assert_eq!(spread(70_000), None);
        // Addresses that follow each other are one range.
        let dense = program((0..70_000).map(address), &[], None).unwrap();
        assert!(accepts(&dense, 69_999) && !accepts(&dense, 70_000));
    }

    #[test]
    fn with_an_interface_peers_are_accepted_on_it_alone() {
        let program = program([address(5)], &[], Some(3)).unwrap();
        assert!(accepts_on(&program, 3, 5));
        assert!(!accepts_on(&program, 3, 6));
        assert!(!accepts_on(&program, 2, 5));
        assert!(!accepts_on(&program, 0, 5));
    }

    #[test]
    fn the_whole_of_ipv4_is_a_range_too() {
        let program = program([address(5)], &["0.0.0.0/0".parse().unwrap()], None).unwrap();
        for source in [0, 5, u32::MAX] {
            assert!(accepts(&program, source));
        }
    }

    proptest! {
        #[test]
        fn equals_a_linear_search(
            // A narrow range, so that there are neighbours, overlaps and duplicates.
            sources in proptest::collection::vec(prop_oneof![0u32..600, any::<u32>()], 0..200),
            networks in proptest::collection::vec((prop_oneof![0u32..600, any::<u32>()], 0u8..=32), 0..20),
            probes in proptest::collection::vec(prop_oneof![0u32..700, any::<u32>()], 1..200),
        ) {
            let networks: Vec<Ipv4Net> = networks
                .into_iter()
                .map(|(bits, length)| Ipv4Net::new(address(bits), length.max(20)).unwrap().trunc())
                .collect();
            let program = program(sources.iter().copied().map(address), &networks, None).unwrap();
            let edges = sources.iter().flat_map(|source| {
                [source.wrapping_sub(1), *source, source.wrapping_add(1)]
            });
            for probe in probes.into_iter().chain(edges) {
                let plain = sources.contains(&probe)
                    || networks.iter().any(|network| network.contains(&address(probe)));
                prop_assert_eq!(accepts(&program, probe), plain, "{}", address(probe));
            }
        }
    }
}
