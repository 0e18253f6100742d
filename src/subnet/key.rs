//! Subnet keys: `<a.b.c.d>-<len>`, and `<v4>-<len>&<v6>-<len>` in dual stack.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};

/// The name of a lease's record: its subnet, and an IPv6 subnet in dual stack networks.
///
/// The parser is stricter than flannel's regular expression (`ParseSubnetKey`): anchored at both
/// ends, canonical addresses, no host bits, no leading zeros. All keys that flannel writes pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubnetKey {
    /// The IPv4 subnet.
    pub v4: Ipv4Net,
    /// The IPv6 subnet.
    pub v6: Option<Ipv6Net>,
}

/// Why a name is not a subnet key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not of the form `a.b.c.d-len`.
    #[error("not of the form a.b.c.d-len")]
    Form,
    /// The prefix length is 0, or leaves no hosts.
    #[error("impossible prefix length")]
    Length,
    /// The address has host bits, or is not written canonically.
    #[error("address is not the subnet's own, canonically written")]
    NotCanonical,
}

impl From<Ipv4Net> for SubnetKey {
    fn from(v4: Ipv4Net) -> Self {
        Self {
            v4: v4.trunc(),
            v6: None,
        }
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.v4.addr(), self.v4.prefix_len())?;
        match self.v6 {
            Some(v6) => write!(f, "&{}-{}", v6.addr(), v6.prefix_len()),
            None => Ok(()),
        }
    }
}

impl FromStr for SubnetKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (v4, v6) = match text.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (text, None),
        };
        let (address, length) = v4.split_once('-').ok_or(KeyError::Form)?;
        let address: Ipv4Addr = address.parse().map_err(|_| KeyError::Form)?;
        let v4 = Ipv4Net::new(address, prefix_len(length, 31)?).map_err(|_| KeyError::Length)?;
        let v6 = v6.map(parse_v6).transpose()?;
        let key = Self { v4, v6 };
        if v4.trunc() != v4 || v6.is_some_and(|v6| v6.trunc() != v6) || key.to_string() != text {
            return Err(KeyError::NotCanonical);
        }
        Ok(key)
    }
}

fn parse_v6(text: &str) -> Result<Ipv6Net, KeyError> {
    let (address, length) = text.split_once('-').ok_or(KeyError::Form)?;
    let address: Ipv6Addr = address.parse().map_err(|_| KeyError::Form)?;
    Ipv6Net::new(address, prefix_len(length, 127)?).map_err(|_| KeyError::Length)
}

fn prefix_len(text: &str, longest: u8) -> Result<u8, KeyError> {
    if text.is_empty() || text.len() > 3 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(KeyError::Form);
    }
    match text.parse() {
        Ok(length) if (1..=longest).contains(&length) => Ok(length),
        _ => Err(KeyError::Length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn flannels_keys_are_read_and_written_alike() {
        for text in [
            "10.12.13.0-24",
            "172.20.97.0-24",
            "10.3.0.4-30",
            "10.12.13.0-24&fd00:12:13::-56",
        ] {
            let key: SubnetKey = text.parse().unwrap();
            assert_eq!(key.to_string(), text);
        }
        let key: SubnetKey = "10.12.13.0-24".parse().unwrap();
        assert_eq!(
            (key.v4.to_string().as_str(), key.v6),
            ("10.12.13.0/24", None)
        );
    }

    #[test]
    fn what_flannel_refuses_and_what_it_should_refuse_is_refused() {
        // The first eleven are those of flannel's `subnet_test.go`.
        let cases = [
            "10",
            "10.12.13.0",
            "10.12.13-24",
            "10.12.13.300-24",
            "10.12.13.0-24hi",
            "&2001::-56",
            "10.12.13.0-24&:12:13:-56",
            "10.12.13.0-24&20011::-56",
            "10.12.13.0-24&2001-56",
            "10.12.13.0-24&2001::",
            "10.12.13.0-24&2001::-56hi",
            "",
            "-",
            "x0.0.0.0-0",
            "0.0.0.0-0",
            "10.12.13.0-32",
            "10.12.13.1-24",
            "010.12.13.0-24",
            "10.12.13.0-024",
            "10.12.13.0--1",
            "10.12.13.0-+4",
            "10.12.13.0-24&",
            " 10.12.13.0-24",
            "10.12.13.0-24&FD00:12:13::-56",
            "10.12.13.0-24&fd00:12:13::1-56",
            "10.12.13.0-24&fd00:12:13::-128",
            "10.12.13.0-99999999999",
        ];
        for text in cases {
            assert!(text.parse::<SubnetKey>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_subnet_makes_the_round_trip(address: u32, length in 1u8..32, v6 in any::<Option<(u128, u8)>>()) {
            let v4 = Ipv4Net::new(Ipv4Addr::from_bits(address), length).unwrap().trunc();
            let v6 = v6.map(|(bits, length)| {
                Ipv6Net::new(Ipv6Addr::from_bits(bits), length % 127 + 1).unwrap().trunc()
            });
            let key = SubnetKey { v4, v6 };
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }

        #[test]
        fn no_text_panics(text in "[0-9a-f.:&x-]{0,40}|.{0,40}") {
            if let Ok(key) = text.parse::<SubnetKey>() {
                prop_assert_eq!(key.to_string(), text);
            }
        }
    }
}
