//! What the underlay's devices leave to the host, as NICs of several kinds do.

use std::fmt;

use super::namespace::{Node, TestbedError};
use crate::sys::ethtool;

/// What a NIC offloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicClass {
    /// veth as it is: packets of 64 KiB pass whole, tunnelled or not, and no checksum is
    /// ever computed.
    Full,
    /// Segmentation of TCP and UDP, and not inside of tunnels: most virtual NICs.
    Uso,
    /// Checksums, and no segmentation; packets are joined on receive.
    Plain,
    /// As [`NicClass::Plain`], and nothing is joined on receive.
    None,
}

impl NicClass {
    /// All of them, best first.
    pub const ALL: [Self; 4] = [Self::Full, Self::Uso, Self::Plain, Self::None];

    /// The name, as it is written on a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Uso => "uso",
            Self::Plain => "plain",
            Self::None => "none",
        }
    }

    fn features(self) -> Vec<(&'static str, bool)> {
        const TUNNELS: [&str; 2] = ["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];
        const SEGMENTATION: [&str; 6] = [
            "tx-generic-segmentation",
            "tx-udp-segmentation",
            "tx-tcp-segmentation",
            "tx-tcp6-segmentation",
            "tx-tcp-ecn-segmentation",
            "tx-tcp-mangleid-segmentation",
        ];
        let off: &[&[&'static str]] = match self {
            Self::Full => return Vec::new(),
            Self::Uso => &[&TUNNELS],
            Self::Plain | Self::None => &[&TUNNELS, &SEGMENTATION],
        };
        let mut features: Vec<_> = off.concat().into_iter().map(|name| (name, false)).collect();
        features.push(("rx-gro", self != Self::None));
        features
    }

    /// Gives a device this kind's features.
    ///
    /// # Errors
    /// When there is no such device, or the kernel refuses.
    pub fn apply(self, node: &Node, device: &str) -> Result<(), TestbedError> {
        node.set_features(device, &self.features())
    }
}

impl fmt::Display for NicClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Node {
    /// Switches features of a device, by the names that `ethtool -k` prints.
    ///
    /// # Errors
    /// When there is no such device, or the kernel refuses.
    pub fn set_features(
        &self,
        device: &str,
        features: &[(&str, bool)],
    ) -> Result<(), TestbedError> {
        self.namespace()
            .run(|| ethtool::set_features(device, features))
            .and_then(|inner| inner)
            .map_err(|source| TestbedError::Io {
                what: format!("set features of {device}"),
                place: self.name().to_owned(),
                source,
            })
    }
}
