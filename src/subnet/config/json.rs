//! Parses JSON objects as Go's `encoding/json` does for a struct.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{ConfigError, check};

/// One value of an object, and its key for messages.
#[derive(Debug)]
pub(super) struct Field<'a> {
    key: &'a str,
    value: &'a RawValue,
}

/// The members of an object in their order, with duplicates.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// Calls `each` with every member that is not `null`, its key in lower case. `null` instead of an
/// object has no members, as in Go.
pub(super) fn for_each_field(
    text: &[u8],
    mut each: impl FnMut(&str, &Field<'_>) -> Result<(), ConfigError>,
) -> Result<(), ConfigError> {
    let members: Option<Members<'_>> =
        serde_json::from_slice(text).map_err(|error| ConfigError::Json(error.to_string()))?;
    for (key, value) in members.map(|members| members.0).unwrap_or_default() {
        if value.get() != "null" {
            each(&key.to_ascii_lowercase(), &Field { key: &key, value })?;
        }
    }
    Ok(())
}

impl<'a> Field<'a> {
    pub(super) fn raw(&self) -> &'a str {
        self.value.get()
    }

    pub(super) fn string(&self) -> Result<String, ConfigError> {
        self.typed("a string")
    }

    pub(super) fn unsigned(&self) -> Result<u64, ConfigError> {
        self.typed("a whole number that is not negative")
    }

    pub(super) fn boolean(&self) -> Result<bool, ConfigError> {
        self.typed("true or false")
    }

    /// A string that parses as `T`: an address or a prefix.
    pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(&self) -> Result<T, ConfigError> {
        let text = self.string()?;
        text.parse()
            .map_err(|error| check(format!("{} {text:?} cannot be used: {error}", self.key)))
    }

    fn typed<T: serde::de::DeserializeOwned>(&self, expected: &str) -> Result<T, ConfigError> {
        serde_json::from_str(self.value.get()).map_err(|_| {
            let shown: String = self.value.get().chars().take(40).collect();
            ConfigError::Json(format!("{} must be {expected}, not {shown}", self.key))
        })
    }
}
