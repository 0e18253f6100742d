//! The kernel's version, for defects that can only be recognized by it.

use std::fmt;
use std::fs;
use std::sync::OnceLock;

/// Major, minor and patch level of a release like `6.1.0-18-amd64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Parses the numbers at the start of a release. Missing ones are 0.
    fn parse(release: &str) -> Self {
        let numbers = release
            .split(|byte: char| !byte.is_ascii_digit() && byte != '.')
            .next()
            .unwrap_or_default();
        let mut numbers = numbers.split('.').map(|part| part.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Self(next(), next(), next())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The running kernel's version; 0.0.0 if `/proc` cannot be read.
#[must_use]
pub fn version() -> Version {
    static VERSION: OnceLock<Version> = OnceLock::new();
    *VERSION.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or(Version(0, 0, 0), |release| Version::parse(release.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_parsed() {
        for (release, version) in [
            ("6.1.0-18-amd64", Version(6, 1, 0)),
            ("5.4.0-1045-raspi", Version(5, 4, 0)),
            ("3.10.0-1160.el7.x86_64", Version(3, 10, 0)),
            ("7.1-rc1+", Version(7, 1, 0)),
            ("6.18.5", Version(6, 18, 5)),
            ("strange", Version(0, 0, 0)),
        ] {
            assert_eq!(Version::parse(release), version, "{release}");
        }
        assert!(Version(5, 12, 0) > Version(5, 4, 300));
    }

    #[test]
    fn the_running_kernel_has_a_version() {
        assert!(version() > Version(2, 6, 0));
    }
}
