//! The path MTU to a peer: found by bisection, confirmed from then on, and searched again when it
//! changes. Pure.

/// Length of a small probe, which every path carries.
pub(super) const SMALL: u16 = 84;
/// A length is too long after this many losses in a row while small probes pass.
const MISSES: u8 = 3;
/// How closely the path MTU is found.
const PRECISION: u16 = 8;
/// After this many confirmations, a longer probe tries whether the path MTU has grown.
const RETRY: u8 = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    /// The device's MTU: more is never sent.
    mtu: u16,
    /// The longest length that passed.
    good: u16,
    /// The shortest length that did not.
    bad: Option<u16>,
    /// The length that was missed last, and how often in a row.
    missed: (u16, u8),
    confirmed: u8,
}

impl Path {
    pub(super) const fn new(mtu: u16) -> Self {
        Self {
            mtu: if mtu < SMALL { SMALL } else { mtu },
            good: SMALL,
            bad: None,
            missed: (0, 0),
            confirmed: 0,
        }
    }

    /// The length to try next.
    pub(super) const fn length(&self) -> u16 {
        match (self.missed, self.bad) {
            ((length, 1..), _) => length,
            (_, None) => self.mtu,
            (_, Some(bad)) if bad - self.good > PRECISION => self.good + (bad - self.good) / 2,
            (_, Some(bad)) if self.confirmed >= RETRY => bad,
            _ => self.good,
        }
    }

    /// Whether the search goes on, so that it is worth probing more often.
    pub(super) const fn is_searching(&self) -> bool {
        let open = match self.bad {
            None => self.good < self.mtu,
            Some(bad) => bad - self.good > PRECISION,
        };
        open || self.missed.1 > 0
    }

    /// The path MTU, once it is known.
    pub(super) const fn found(&self) -> Option<u16> {
        if self.good > SMALL || (self.bad.is_some() && !self.is_searching()) {
            return Some(self.good);
        }
        None
    }

    /// A probe of this length was answered.
    pub(super) fn passed(&mut self, length: u16) {
        self.missed = (0, 0);
        if self.bad.is_some_and(|bad| bad <= length) {
            self.bad = None;
        }
        if length > self.good {
            self.good = length;
            self.confirmed = 0;
        } else {
            self.confirmed = self.confirmed.saturating_add(1);
        }
    }

    /// A probe of this length was not answered, and the small one right after it was.
    pub(super) fn missed(&mut self, length: u16) {
        let (before, count) = self.missed;
        let count = if before == length { count + 1 } else { 1 };
        self.missed = (length, count);
        if count >= MISSES {
            self.refused(length);
        }
    }

    /// A probe of this length is certainly too long.
    pub(super) fn refused(&mut self, length: u16) {
        self.missed = (0, 0);
        self.confirmed = 0;
        if length <= SMALL {
            return;
        }
        if length <= self.good {
            self.good = SMALL;
        }
        self.bad = Some(self.bad.map_or(length, |bad| bad.min(length)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probes a path that carries `carried` bytes until the search is over. Returns the number
    /// of probes.
    fn search(path: &mut Path, carried: u16) -> u32 {
        for probes in 0..100 {
            if !path.is_searching() {
                return probes;
            }
            probe(path, carried);
        }
        panic!("no end: {path:?}");
    }

    fn probe(path: &mut Path, carried: u16) {
        let length = path.length();
        if length <= carried {
            path.passed(length);
        } else {
            path.missed(length);
        }
    }

    #[test]
    fn a_path_that_carries_everything_is_known_at_once() {
        let mut path = Path::new(1450);
        assert_eq!((path.found(), path.length()), (None, 1450));
        assert_eq!(search(&mut path, 1450), 1);
        assert_eq!(path.found(), Some(1450));
    }

    #[test]
    fn any_path_mtu_is_found_by_few_probes() {
        for mtu in [84, 90, 1450, 8950, 65_485] {
            for carried in (84..=mtu).step_by(37).chain([mtu]) {
                let mut path = Path::new(mtu);
                let probes = search(&mut path, carried);
                assert!(probes <= 45, "{probes} for {carried} of {mtu}");
                let found = path.found().unwrap_or(SMALL);
                assert!((carried.saturating_sub(PRECISION)..=carried).contains(&found));
            }
        }
    }

    #[test]
    fn the_path_mtu_falls_and_rises_with_the_path() {
        let mut path = Path::new(1450);
        search(&mut path, 1450);
        // One lost probe, and another, say nothing yet.
        for _ in 0..2 {
            probe(&mut path, 1300);
            assert_eq!((path.found(), path.is_searching()), (Some(1450), true));
        }
        probe(&mut path, 1300);
        assert_eq!(path.found(), None);
        search(&mut path, 1300);
        assert!((1292..=1300).contains(&path.found().unwrap()));
        // Trying longer probes costs three of them now and then.
        let probes: Vec<u16> = (0..100)
            .map(|_| {
                let length = path.length();
                probe(&mut path, 1300);
                length
            })
            .collect();
        let too_long = probes.iter().filter(|length| **length > 1300).count();
        assert!((3..=9).contains(&too_long), "{probes:?}");
        assert!((1292..=1300).contains(&path.found().unwrap()));
        for _ in 0..100 {
            probe(&mut path, 1450);
        }
        assert_eq!(path.found(), Some(1450));
    }

    #[test]
    fn a_length_that_the_kernel_refuses_is_tried_once() {
        let mut path = Path::new(1450);
        path.refused(1450);
        assert_eq!(path.length(), SMALL + (1450 - SMALL) / 2);
        path.refused(SMALL);
        assert_eq!(path.length(), SMALL + (1450 - SMALL) / 2);
    }
}
