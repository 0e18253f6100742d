//! How long a packet may be on the way to a peer: found by halving, checked from then on, and
//! found anew when it changes. Pure.

/// Length of a small probe, which every way carries.
pub const SMALL: u16 = 84;
/// So many of one length lost in a row, while small ones pass, and it is too long.
const MISSES: u8 = 3;
/// How closely the longest length is found.
const STEP: u16 = 8;
/// After so many confirmations of a narrow path, one look whether it still is narrow.
const RETRY: u8 = 32;

/// What is known of the way to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// The device's MTU: more is never sent.
    mtu: u16,
    /// The longest that passed.
    good: u16,
    /// The shortest that did not.
    bad: Option<u16>,
    /// What was missed last, and how often in a row.
    missed: (u16, u8),
    confirmed: u8,
}

impl Path {
    /// Nothing is known yet, but that a device takes packets of `mtu` bytes.
    #[must_use]
    pub const fn new(mtu: u16) -> Self {
        Self {
            mtu: if mtu < SMALL { SMALL } else { mtu },
            good: SMALL,
            bad: None,
            missed: (0, 0),
            confirmed: 0,
        }
    }

    /// The length to try next.
    #[must_use]
    pub const fn length(&self) -> u16 {
        match (self.missed, self.bad) {
            ((length, 1..), _) => length,
            (_, None) => self.mtu,
            (_, Some(bad)) if bad - self.good > STEP => self.good + (bad - self.good) / 2,
            (_, Some(bad)) if self.confirmed >= RETRY => bad,
            _ => self.good,
        }
    }

    /// Whether it is worth asking more often, for a while.
    #[must_use]
    pub const fn is_searching(&self) -> bool {
        let open = match self.bad {
            None => self.good < self.mtu,
            Some(bad) => bad - self.good > STEP,
        };
        open || self.missed.1 > 0
    }

    /// The longest that passed, once that says something.
    #[must_use]
    pub const fn found(&self) -> Option<u16> {
        if self.good > SMALL || (self.bad.is_some() && !self.is_searching()) {
            return Some(self.good);
        }
        None
    }

    /// A probe of this length was answered.
    pub fn passed(&mut self, length: u16) {
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

    /// A probe of this length was not answered, and a small one right after it was.
    pub fn missed(&mut self, length: u16) {
        let (before, count) = self.missed;
        let count = if before == length { count + 1 } else { 1 };
        self.missed = (length, count);
        if count >= MISSES {
            self.refused(length);
        }
    }

    /// A probe of this length is too long for sure.
    pub fn refused(&mut self, length: u16) {
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

    /// Asks a way that carries `carried` bytes until nothing more is open; how often.
    fn search(path: &mut Path, carried: u16) -> u32 {
        for asked in 0..100 {
            if !path.is_searching() {
                return asked;
            }
            ask(path, carried);
        }
        panic!("no end: {path:?}");
    }

    fn ask(path: &mut Path, carried: u16) {
        let length = path.length();
        if length <= carried {
            path.passed(length);
        } else {
            path.missed(length);
        }
    }

    #[test]
    fn a_way_that_carries_everything_is_known_at_once() {
        let mut path = Path::new(1450);
        assert_eq!((path.found(), path.length()), (None, 1450));
        assert_eq!(search(&mut path, 1450), 1);
        assert_eq!(path.found(), Some(1450));
    }

    #[test]
    fn a_narrow_way_is_found_by_few_probes_wherever_it_ends() {
        for mtu in [84, 90, 1450, 8950, 65_485] {
            for carried in (84..=mtu).step_by(37).chain([mtu]) {
                let mut path = Path::new(mtu);
                let asked = search(&mut path, carried);
                assert!(asked <= 45, "{asked} for {carried} of {mtu}");
                let found = path.found().unwrap_or(SMALL);
                assert!((carried.saturating_sub(STEP)..=carried).contains(&found));
            }
        }
    }

    #[test]
    fn it_falls_when_the_way_narrows_and_rises_again() {
        let mut path = Path::new(1450);
        search(&mut path, 1450);
        // One lost probe, and another, say nothing yet.
        for _ in 0..2 {
            ask(&mut path, 1300);
            assert_eq!((path.found(), path.is_searching()), (Some(1450), true));
        }
        ask(&mut path, 1300);
        assert_eq!(path.found(), None);
        search(&mut path, 1300);
        assert!((1292..=1300).contains(&path.found().unwrap()));
        // As long as it stays narrow, that costs three probes now and then.
        let asked: Vec<u16> = (0..100)
            .map(|_| {
                let length = path.length();
                ask(&mut path, 1300);
                length
            })
            .collect();
        let too_long = asked.iter().filter(|length| **length > 1300).count();
        assert!((3..=9).contains(&too_long), "{asked:?}");
        assert!((1292..=1300).contains(&path.found().unwrap()));
        for _ in 0..100 {
            ask(&mut path, 1450);
        }
        assert_eq!(path.found(), Some(1450));
    }

    #[test]
    fn what_the_kernel_refuses_is_not_tried_again_and_again() {
        let mut path = Path::new(1450);
        path.refused(1450);
        assert_eq!(path.length(), SMALL + (1450 - SMALL) / 2);
        path.refused(SMALL);
        assert_eq!(path.length(), SMALL + (1450 - SMALL) / 2);
    }
}
