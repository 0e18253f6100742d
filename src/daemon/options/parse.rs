//! Parsers for the values of flags, as flannel's where it has the flag.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;

use crate::dataplane::offloads::{Offloads, UnknownOffload};

/// Why a text is not a value of its flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// Not a boolean, or not a number; what was expected. If it comes from the environment,
    /// flannel falls back to the default, and so do we.
    Type(String),
    /// Of the right type but unusable; what was expected. The default would be another
    /// address, endpoint or store than the user meant, so this is always an error.
    Value(String),
    /// `--kube-subnet-mgr` is set.
    KubeSubnetManager,
}

fn expected<T>(what: &str) -> Result<T, Invalid> {
    Err(Invalid::Value(what.to_owned()))
}

/// Go's `strconv.ParseBool`.
pub(crate) fn boolean(text: &str) -> Result<bool, Invalid> {
    match text.trim_ascii() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Invalid::Type("true or false (or 1, 0, t, f)".to_owned())),
    }
}

/// Go's `strconv.ParseInt` with base 0 (decimal, `0x`, `0o`, `0b`, and a leading 0 for
/// octal; no underscores), within `min..=max`.
pub(crate) fn integer(text: &str, min: i64, max: i64) -> Result<i64, Invalid> {
    let range = format!("a whole number from {min} to {max}");
    let Some(number) = go_integer(text.trim_ascii()) else {
        return Err(Invalid::Type(range));
    };
    if (min..=max).contains(&number) {
        Ok(number)
    } else {
        Err(Invalid::Value(range))
    }
}

fn go_integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, lower.get(2..)?),
        [b'0', b'o', ..] => (8, lower.get(2..)?),
        [b'0', b'b', ..] => (2, lower.get(2..)?),
        [b'0', _, ..] => (8, lower.get(1..)?),
        _ => (10, lower.as_str()),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// A count within `min..=max`, both of which fit `u32`.
pub(crate) fn count(text: &str, min: u32, max: u32) -> Result<u32, Invalid> {
    let number = integer(text, min.into(), max.into())?;
    u32::try_from(number).or_else(|_| expected(&format!("a whole number from {min} to {max}")))
}

/// A text; empty means "not given", as flannel's empty defaults do.
pub(crate) fn optional(text: &str) -> Option<&str> {
    let text = text.trim_ascii();
    (!text.is_empty()).then_some(text)
}

/// A text that must not be empty.
pub(crate) fn required(text: &str, what: &str) -> Result<String, Invalid> {
    optional(text).map_or_else(|| expected(what), |text| Ok(text.to_owned()))
}

/// An address; empty means "not given".
pub(crate) fn address<T: std::str::FromStr>(text: &str, what: &str) -> Result<Option<T>, Invalid> {
    match optional(text) {
        None => Ok(None),
        Some(text) => text.parse().map(Some).or_else(|_| expected(what)),
    }
}

/// A comma-separated list of etcd URLs. flannel does not trim the items and then fails on a
/// blank; here blanks around an item and empty items are dropped.
pub(crate) fn endpoints(text: &str) -> Result<Vec<String>, Invalid> {
    let items: Vec<String> = text
        .split(',')
        .filter_map(optional)
        .map(str::to_owned)
        .collect();
    if items.is_empty() || !items.iter().all(|item| is_endpoint(item)) {
        return expected("a comma list of URLs such as https://10.0.0.1:2379");
    }
    Ok(items)
}

fn is_endpoint(text: &str) -> bool {
    let host = match text.split_once("://") {
        Some((scheme, host)) => {
            let http = ["http", "https"]
                .iter()
                .any(|known| scheme.eq_ignore_ascii_case(known));
            if !http {
                return false;
            }
            host
        }
        None => text,
    };
    let forbidden = |character: char| {
        character.is_whitespace() || character.is_control() || matches!(character, '"' | '\'')
    };
    !host.is_empty() && !host.starts_with('/') && !text.contains(forbidden)
}

/// The directory of `dir:PATH`; `None` for `etcd`.
pub(crate) fn store_directory(text: &str) -> Result<Option<PathBuf>, Invalid> {
    match text.trim_ascii() {
        "etcd" => Ok(None),
        other => match other.strip_prefix("dir:") {
            Some(path) if !path.is_empty() => Ok(Some(path.into())),
            _ => expected("etcd or dir:PATH, such as dir:/mnt/shared/leases"),
        },
    }
}

/// A prefix; an address alone is a prefix of 32 bits.
pub(crate) fn network(text: &str) -> Result<Ipv4Net, Invalid> {
    let text = text.trim_ascii();
    let network = text
        .parse::<Ipv4Net>()
        .or_else(|_| text.parse::<Ipv4Addr>().map(Ipv4Net::from));
    network
        .map(|network| network.trunc())
        .or_else(|_| expected("a network such as 192.0.2.0/24, or an address"))
}

/// The value of `--offload`.
pub(crate) fn offloads(text: &str) -> Result<Offloads, Invalid> {
    text.trim_ascii()
        .parse()
        .map_err(|error: UnknownOffload| Invalid::Value(error.to_string()))
}

/// One of a few words.
pub(crate) fn choice<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, Invalid> {
    let text = text.trim_ascii();
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    expected(&words.join(" or "))
}
