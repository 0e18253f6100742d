//! A 48-bit MAC address, as text and as bytes.

use std::fmt;
use std::str::FromStr;

/// An IEEE 802 MAC-48 address.
///
/// The text form is flannel's: lower-case hex pairs with colons. Parsing also takes
/// what Go's `net.ParseMAC` takes for six bytes: `-` as separator, and dotted quads
/// (`0011.2233.4455`). Its 8 and 20 byte forms are no VTEP addresses and are refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

/// Why a text is no MAC-48 address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address of six bytes, like 0e:2a:00:00:00:01")]
pub struct MacParseError(pub String);

impl MacAddr {
    /// Makes a locally administered unicast address out of random bytes, by the rule of
    /// flannel's `pkg/mac/mac.go`: first byte `(r & 0xfe) | 0x02`.
    #[must_use]
    pub const fn locally_administered(mut random: [u8; 6]) -> Self {
        random[0] = (random[0] & 0xfe) | 0x02;
        Self(random)
    }

    /// Whether the group bit is set (multicast or broadcast).
    #[must_use]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Whether all bytes are zero.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }

    /// Whether this address can be a VTEP's: unicast and not all zero.
    #[must_use]
    pub fn is_valid_vtep(self) -> bool {
        !self.is_multicast() && !self.is_zero()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = MacParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || MacParseError(text.to_owned());
        let (separator, digits, groups) = if text.contains('.') {
            ('.', 4, 3)
        } else if text.contains('-') {
            ('-', 2, 6)
        } else {
            (':', 2, 6)
        };
        let mut hex = String::with_capacity(12);
        let mut seen = 0;
        for group in text.split(separator) {
            if group.len() != digits || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            hex.push_str(group);
            seen += 1;
        }
        if seen != groups {
            return Err(refuse());
        }
        let value = u64::from_str_radix(&hex, 16).map_err(|_| refuse())?;
        let [_, _, bytes @ ..] = value.to_be_bytes();
        Ok(Self(bytes))
    }
}

#[cfg(feature = "serde")]
mod as_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::MacAddr;

    impl Serialize for MacAddr {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }

    impl<'de> Deserialize<'de> for MacAddr {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(D::Error::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_forms_of_six_bytes_are_read() {
        let expected = MacAddr([0xf6, 0xdf, 0xb4, 0xd0, 0x5d, 0x72]);
        for text in ["f6:df:b4:d0:5d:72", "F6-DF-B4-D0-5D-72", "f6df.b4d0.5d72"] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        assert_eq!(expected.to_string(), "f6:df:b4:d0:5d:72");
    }

    #[test]
    fn other_lengths_and_garbage_are_refused() {
        for text in [
            "",
            ":",
            "f6:df:b4:d0:5d",
            "f6:df:b4:d0:5d:7",
            "f6:df:b4:d0:5d:72:01:02",
            "+6:df:b4:d0:5d:72",
            "f6:df:b4-d0:5d:72",
            "g6:df:b4:d0:5d:72",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn made_addresses_are_local_unicast() {
        for first in 0..=255 {
            let mac = MacAddr::locally_administered([first, 0, 0, 0, 0, 0]);
            assert!(mac.is_valid_vtep());
            assert_eq!(mac.0[0] & 0x02, 0x02);
        }
    }
}
