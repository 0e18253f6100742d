//! Allocation of a subnet for a new node, as flannel's `allocateSubnet`.

use ipnet::Ipv4Net;
use rand::seq::IteratorRandom;

use super::config::NetworkConfig;

/// flannel chooses among at most this many free subnets, the lowest ones.
const CANDIDATES: usize = 100;

/// No subnet is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "out of subnets: all {total} between SubnetMin and SubnetMax overlap one of the {taken} leases; \
     release leases that nobody uses, or widen the range in the network config"
)]
pub struct OutOfSubnets {
    /// Subnets in the range.
    pub total: u64,
    /// Leases found.
    pub taken: usize,
}

/// Chooses a subnet that overlaps no taken prefix of any length: uniformly among the first hundred
/// free ones from `SubnetMin` on.
///
/// # Errors
/// [`OutOfSubnets`] if none is free.
pub(crate) fn allocate(
    config: &NetworkConfig,
    taken: &[Ipv4Net],
    rng: &mut impl rand::Rng,
) -> Result<Ipv4Net, OutOfSubnets> {
    let mut blocked: Vec<(u32, u32)> = taken
        .iter()
        .map(|prefix| (prefix.network().to_bits(), prefix.broadcast().to_bits()))
        .collect();
    blocked.sort_unstable();
    let free = Free {
        blocked: &blocked,
        next: Some(config.subnet_min.to_bits()),
        last: config.subnet_max.to_bits(),
        size: 1u32 << (32 - config.subnet_len),
        blocked_to: None,
    };
    let chosen = free.take(CANDIDATES).choose(rng);
    let prefix = chosen.and_then(|base| Ipv4Net::new(base.into(), config.subnet_len).ok());
    prefix.ok_or_else(|| {
        let span = config
            .subnet_max
            .to_bits()
            .checked_sub(config.subnet_min.to_bits());
        OutOfSubnets {
            total: span.map_or(0, |span| u64::from(span >> (32 - config.subnet_len)) + 1),
            taken: taken.len(),
        }
    })
}

/// Whether the config allows this subnet: flannel's `isSubnetConfigCompat`.
#[must_use]
pub fn compatible(config: &NetworkConfig, subnet: Ipv4Net) -> bool {
    subnet.prefix_len() == config.subnet_len
        && (config.subnet_min..=config.subnet_max).contains(&subnet.network())
}

/// The free subnets: walks candidates and blocked ranges in parallel, both ascending.
struct Free<'a> {
    /// Ranges not yet passed, sorted by start.
    blocked: &'a [(u32, u32)],
    next: Option<u32>,
    last: u32,
    size: u32,
    /// End of the farthest reaching range passed so far.
    blocked_to: Option<u32>,
}

impl Iterator for Free<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        loop {
            let base = self.next.filter(|base| *base <= self.last)?;
            let end = base + (self.size - 1);
            while let Some(((start, to), rest)) = self.blocked.split_first() {
                if *start > end {
                    break;
                }
                self.blocked_to = self.blocked_to.max(Some(*to));
                self.blocked = rest;
            }
            self.next = base.checked_add(self.size);
            if self.blocked_to.is_none_or(|to| to < base) {
                return Some(base);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::collections::BTreeSet;

    fn config(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text.as_bytes(), Some("vxlan")).unwrap()
    }

    fn flannels() -> NetworkConfig {
        config(r#"{"Network": "10.3.0.0/16", "SubnetMin": "10.3.1.0", "SubnetMax": "10.3.25.0"}"#)
    }

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_free_subnet_inside_the_range_is_chosen() {
        let taken = nets(&[
            "10.3.1.0/24",
            "10.3.2.0/24",
            "10.3.4.0/24",
            "10.3.5.0/24",
            "10.3.31.0/24",
        ]);
        let chosen: BTreeSet<Ipv4Net> = (0..500)
            .map(|seed| allocate(&flannels(), &taken, &mut StdRng::seed_from_u64(seed)).unwrap())
            .collect();
        let expected: BTreeSet<Ipv4Net> = [3]
            .into_iter()
            .chain(6..=25)
            .map(|third| format!("10.3.{third}.0/24").parse().unwrap())
            .collect();
        assert_eq!(
            chosen, expected,
            "each free subnet is chosen at some time, no other ever"
        );
    }

    #[test]
    fn only_the_first_hundred_free_are_candidates() {
        let seed = config(
            r#"{"Network": "172.20.0.0/16", "SubnetMin": "172.20.10.0", "SubnetMax": "172.20.254.0"}"#,
        );
        let highest = (0..3000)
            .map(|number| allocate(&seed, &[], &mut StdRng::seed_from_u64(number)).unwrap())
            .max();
        assert_eq!(highest, Some("172.20.109.0/24".parse().unwrap()));
    }

    #[test]
    fn a_full_range_says_so() {
        let error = allocate(
            &flannels(),
            &nets(&["10.3.0.0/17"]),
            &mut StdRng::seed_from_u64(1),
        );
        assert_eq!(
            error,
            Err(OutOfSubnets {
                total: 25,
                taken: 1
            })
        );
        let turned = config(
            r#"{"Network": "10.3.0.0/16", "SubnetMin": "10.3.5.0", "SubnetMax": "10.3.2.0"}"#,
        );
        assert!(allocate(&turned, &[], &mut StdRng::seed_from_u64(1)).is_err());
    }

    #[test]
    fn leases_of_another_config_are_incompatible() {
        let table = [
            ("10.3.6.0/24", true),
            ("10.3.25.0/24", true),
            ("10.3.26.0/24", false),
            ("10.3.0.0/24", false),
            ("10.4.1.0/24", false),
            ("10.3.6.0/25", false),
        ];
        for (subnet, expected) in table {
            assert_eq!(
                compatible(&flannels(), subnet.parse().unwrap()),
                expected,
                "{subnet}"
            );
        }
    }

    proptest! {
        #[test]
        fn the_choice_overlaps_nothing(
            taken in proptest::collection::vec((0u32..1 << 16, 17u8..=30), 0..60),
            seed: u64,
            len in 18u8..=30,
        ) {
            let config = config(&format!(r#"{{"Network": "10.3.0.0/16", "SubnetLen": {len}}}"#));
            let taken: Vec<Ipv4Net> = taken.into_iter().map(|(offset, length)| {
                Ipv4Net::new((0x0a03_0000 + offset).into(), length).unwrap().trunc()
            }).collect();
            let overlaps = |subnet: Ipv4Net| taken.iter().any(|t| t.contains(&subnet) || subnet.contains(t));
            match allocate(&config, &taken, &mut StdRng::seed_from_u64(seed)) {
                Ok(subnet) => {
                    prop_assert!(compatible(&config, subnet));
                    prop_assert!(!overlaps(subnet), "{} overlaps", subnet);
                }
                Err(_) => {
                    let all = config.network.subnets(len).unwrap().filter(|s| compatible(&config, *s));
                    prop_assert!(all.into_iter().all(overlaps));
                }
            }
        }
    }
}
