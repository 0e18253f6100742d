//! Offloads of the underlay's devices, as NICs of several classes have them.

use std::fmt;

use super::namespace::{Node, TestbedError};
use crate::sys::ethtool;

/// The offloads of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NicClass {
    /// veth as it is: packets of 64 KiB pass whole, tunnelled or not, and no checksum is
    /// computed.
    Full,
    /// Segmentation of TCP and UDP, but not inside tunnels: most virtual NICs.
    Uso,
    /// Checksums but no segmentation; GRO on receive.
    Plain,
    /// As [`NicClass::Plain`], without GRO.
    None,
}

impl NicClass {
    /// All of them, best first.
    pub const ALL: [Self; 4] = [Self::Full, Self::Uso, Self::Plain, Self::None];

    /// The name on the command line.
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

    /// Sets the features of a device to those of this class.
    pub(super) fn apply(self, node: &Node, device: &str) -> Result<(), TestbedError> {
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
    /// If there is no such device, or the kernel refuses.
    pub fn set_features(
        &self,
        device: &str,
        features: &[(&str, bool)],
    ) -> Result<(), TestbedError> {
        self.namespace()
            .try_run(|| ethtool::set_features(device, features))
            .map_err(|source| self.io_error(format!("set features of {device}"), source))
    }
}
