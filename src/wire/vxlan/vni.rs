//! The VXLAN network identifier.

use std::fmt;

/// A VXLAN network identifier: 24 bits (RFC 7348 section 5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "u64", into = "u32")
)]
pub struct Vni(u32);

/// A number that does not fit a VNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("VNI {0} is out of range: it has 24 bits, so at most 16777215")]
pub struct VniOutOfRange(pub u64);

impl Vni {
    /// The largest VNI.
    pub const MAX: Self = Self((1 << 24) - 1);
    /// flannel's default.
    pub const DEFAULT: Self = Self(1);

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for Vni {
    type Error = VniOutOfRange;

    fn try_from(value: u64) -> Result<Self, Self::Error> {
        match u32::try_from(value) {
            Ok(number) if number <= Self::MAX.0 => Ok(Self(number)),
            _ => Err(VniOutOfRange(value)),
        }
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
