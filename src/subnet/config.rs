//! flannel's network config: `<prefix>/config`.
//!
//! Parsed as Go's `encoding/json` does (keys match in any case, the last duplicate wins, unknown
//! keys are ignored, `null` leaves the default, a wrong type is an error). Checked as the newest
//! flannel's `CheckNetworkConfig` does, with its messages, and also where flannel leaves the check
//! to the kernel (VNI, port, MTU).

mod json;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use self::json::Field;
use crate::wire::Vni;
use crate::wire::vxlan::DEFAULT_PORT;

/// Other backend types of flannel, for the error message.
const OTHER_BACKENDS: [&str; 9] = [
    "udp",
    "host-gw",
    "ipip",
    "ipsec",
    "wireguard",
    "alloc",
    "extension",
    "aws-vpc",
    "gce",
];

/// A network config that passed all checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The overlay network.
    pub network: Ipv4Net,
    /// Prefix length of each node's subnet.
    pub subnet_len: u8,
    /// First subnet that may be leased.
    pub subnet_min: Ipv4Addr,
    /// Last subnet that may be leased.
    pub subnet_max: Ipv4Addr,
    /// The IPv6 part, if enabled. Checked, but not forwarded yet.
    pub ipv6: Option<Ipv6Config>,
    /// nftables instead of iptables.
    pub enable_nftables: bool,
    /// Options of the vxlan backend.
    pub backend: VxlanConfig,
}

/// The IPv6 part of a dual stack network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv6Config {
    /// The overlay network.
    pub network: Ipv6Net,
    /// Prefix length of each node's subnet.
    pub subnet_len: u8,
    /// First subnet that may be leased.
    pub subnet_min: Ipv6Addr,
    /// Last subnet that may be leased.
    pub subnet_max: Ipv6Addr,
}

/// Options of the backend `vxlan`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanConfig {
    /// VXLAN network identifier; also in the device name. Default 1.
    pub vni: Vni,
    /// UDP port, ours and the peers'. Default 8472.
    pub port: u16,
    /// *Outer* MTU; the device gets 50 less. Default: the external interface's.
    pub mtu: Option<u16>,
    /// Group based policy extension.
    pub gbp: bool,
    /// Plain routes to peers on the same link.
    pub direct_routing: bool,
    /// Learning of addresses from received packets.
    pub learning: bool,
}

/// Why a network config cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or a value of the wrong type.
    #[error("error decoding: {0}")]
    Json(String),
    /// A check of flannel failed; its message.
    #[error("{0}")]
    Check(String),
    /// No backend type is given, or flannel's `udp`.
    #[error(
        "the config {found}, which does not interoperate with vxlan nodes; put \"Backend\": {{\"Type\": \
         \"vxlan\"}} into the config, or start with --backend-default vxlan"
    )]
    BackendUnclear {
        /// What the config says.
        found: &'static str,
    },
    /// Another backend.
    #[error("backend type {found:?} is not supported; supported is: vxlan{hint}")]
    Backend {
        /// The type, in lower case.
        found: String,
        /// A hint, if the type is one of flannel's.
        hint: &'static str,
    },
}

impl NetworkConfig {
    /// Parses and checks. `backend_default` is the type to assume if the config names none, or
    /// `udp`.
    ///
    /// # Errors
    /// [`ConfigError`], with flannel's message if flannel has one.
    pub fn parse(text: &[u8], backend_default: Option<&str>) -> Result<Self, ConfigError> {
        let mut raw = Raw::default();
        json::for_each_field(text, |key, field| raw.set(key, field))?;
        if !raw.enable_ipv4 {
            return Err(check(if raw.enable_ipv6 {
                "EnableIPv4 is false: an overlay without IPv4 is not supported yet"
            } else {
                "none defined stack: EnableIPv4 and EnableIPv6 are both false"
            }));
        }
        let (network, subnet_len, subnet_min, subnet_max) = raw.ipv4()?;
        let ipv6 = if raw.enable_ipv6 {
            Some(raw.ipv6()?)
        } else {
            None
        };
        Ok(Self {
            network,
            subnet_len,
            subnet_min,
            subnet_max,
            ipv6,
            enable_nftables: raw.enable_nftables,
            backend: backend(raw.backend.as_deref(), backend_default)?,
        })
    }

    /// Keys in the config that have no effect yet, for one warning each.
    #[must_use]
    pub fn without_effect(&self) -> Vec<&'static str> {
        let keys = [
            ("EnableIPv6", self.ipv6.is_some()),
            ("Backend.GBP", self.backend.gbp),
            ("Backend.Learning", self.backend.learning),
        ];
        keys.into_iter()
            .filter(|(_, set)| *set)
            .map(|(key, _)| key)
            .collect()
    }
}

fn check(text: impl Into<String>) -> ConfigError {
    ConfigError::Check(text.into())
}

/// The config before checks.
#[derive(Debug)]
struct Raw {
    network: Option<Ipv4Net>,
    subnet_len: u64,
    subnet_min: Option<Ipv4Addr>,
    subnet_max: Option<Ipv4Addr>,
    enable_ipv4: bool,
    enable_ipv6: bool,
    enable_nftables: bool,
    ipv6_network: Option<Ipv6Net>,
    ipv6_subnet_len: u64,
    ipv6_subnet_min: Option<Ipv6Addr>,
    ipv6_subnet_max: Option<Ipv6Addr>,
    backend: Option<String>,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            network: None,
            subnet_len: 0,
            subnet_min: None,
            subnet_max: None,
            enable_ipv4: true,
            enable_ipv6: false,
            enable_nftables: false,
            ipv6_network: None,
            ipv6_subnet_len: 0,
            ipv6_subnet_min: None,
            ipv6_subnet_max: None,
            backend: None,
        }
    }
}

impl Raw {
    /// `key` is in lower case.
    fn set(&mut self, key: &str, field: &Field<'_>) -> Result<(), ConfigError> {
        match key {
            "network" => self.network = Some(field.parsed::<Ipv4Net>()?.trunc()),
            "subnetlen" => self.subnet_len = field.unsigned()?,
            "subnetmin" => self.subnet_min = Some(field.parsed()?),
            "subnetmax" => self.subnet_max = Some(field.parsed()?),
            "enableipv4" => self.enable_ipv4 = field.boolean()?,
            "enableipv6" => self.enable_ipv6 = field.boolean()?,
            "enablenftables" => self.enable_nftables = field.boolean()?,
            "ipv6network" => self.ipv6_network = Some(field.parsed::<Ipv6Net>()?.trunc()),
            "ipv6subnetlen" => self.ipv6_subnet_len = field.unsigned()?,
            "ipv6subnetmin" => self.ipv6_subnet_min = Some(field.parsed()?),
            "ipv6subnetmax" => self.ipv6_subnet_max = Some(field.parsed()?),
            "backend" => self.backend = Some(field.raw().to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn ipv4(&self) -> Result<(Ipv4Net, u8, Ipv4Addr, Ipv4Addr), ConfigError> {
        let network = self
            .network
            .filter(|network| network.prefix_len() > 0 || !network.addr().is_unspecified())
            .ok_or_else(|| {
                check("please define a correct Network parameter in the flannel config")
            })?;
        let subnet_len = subnet_len(self.subnet_len, network.prefix_len(), 32)?;
        let ends = (network.network(), network.broadcast());
        let given = (self.subnet_min, self.subnet_max);
        let (min, max) = subnet_range("", ends, subnet_len, given)?;
        Ok((network, subnet_len, min, max))
    }

    fn ipv6(&self) -> Result<Ipv6Config, ConfigError> {
        let network = self
            .ipv6_network
            .filter(|network| network.prefix_len() > 0)
            .ok_or_else(|| {
                check("please define a correct IPv6Network parameter in the flannel config")
            })?;
        let subnet_len = subnet_len(self.ipv6_subnet_len, network.prefix_len(), 128)?;
        let ends = (network.network(), network.broadcast());
        let given = (self.ipv6_subnet_min, self.ipv6_subnet_max);
        let (subnet_min, subnet_max) = subnet_range("IPv6", ends, subnet_len, given)?;
        Ok(Ipv6Config {
            network,
            subnet_len,
            subnet_min,
            subnet_max,
        })
    }
}

/// An address of either family, as a number.
trait Address: Copy + fmt::Display {
    const BITS: u8;
    fn number(self) -> u128;
    fn of_number(number: u128) -> Self;
}

impl Address for Ipv4Addr {
    const BITS: u8 = 32;

    fn number(self) -> u128 {
        self.to_bits().into()
    }

    fn of_number(number: u128) -> Self {
        Self::from_bits(u32::try_from(number).unwrap_or(u32::MAX))
    }
}

impl Address for Ipv6Addr {
    const BITS: u8 = 128;

    fn number(self) -> u128 {
        self.to_bits()
    }

    fn of_number(number: u128) -> Self {
        Self::from_bits(number)
    }
}

/// First and last subnet of a network with these first and last addresses: `given` and checked, or
/// by default all but the first. `prefix` is that of the keys.
fn subnet_range<A: Address>(
    prefix: &str,
    network: (A, A),
    subnet_len: u8,
    given: (Option<A>, Option<A>),
) -> Result<(A, A), ConfigError> {
    let size = 1u128 << (A::BITS - subnet_len);
    let (first, last) = (network.0.number(), network.1.number());
    let or = |given: Option<A>, default| {
        let given = given.filter(|address| address.number() != 0);
        given.unwrap_or(A::of_number(default))
    };
    let min = or(given.0, first + size);
    let max = or(given.1, last - (size - 1));
    for (name, address) in [("SubnetMin", min), ("SubnetMax", max)] {
        if !(first..=last).contains(&address.number()) {
            return Err(check(format!(
                "{prefix}{name} is not in the range of the {prefix}Network"
            )));
        }
        if address.number() & (size - 1) != 0 {
            return Err(check(format!(
                "{prefix}{name} is not on a SubnetLen boundary: {address}"
            )));
        }
    }
    Ok((min, max))
}

/// The subnet length for addresses of 32 or 128 bits: given and checked, or computed.
fn subnet_len(given: u64, prefix_len: u8, bits: u8) -> Result<u8, ConfigError> {
    let (name, usual, smallest) = match bits {
        32 => ("network", 24, 28),
        _ => ("IPv6Network", 64, 124),
    };
    if given > 0 {
        let longest = bits - 2;
        let Some(given) = u8::try_from(given).ok().filter(|given| *given <= longest) else {
            return Err(check(format!("SubnetLen must be less than /{}", bits - 1)));
        };
        if given < prefix_len.saturating_add(2) {
            return Err(check(format!(
                "{name} must be able to accommodate at least four subnets"
            )));
        }
        return Ok(given);
    }
    if prefix_len > smallest {
        return Err(check(format!(
            "{name} is too small. Minimum useful network prefix is /{smallest}"
        )));
    }
    Ok(if prefix_len <= usual - 2 {
        usual
    } else {
        prefix_len + 2
    })
}

fn backend(text: Option<&str>, default: Option<&str>) -> Result<VxlanConfig, ConfigError> {
    let mut config = VxlanConfig {
        vni: Vni::DEFAULT,
        port: DEFAULT_PORT,
        mtu: None,
        gbp: false,
        direct_routing: false,
        learning: false,
    };
    let mut kind = None;
    if let Some(text) = text {
        json::for_each_field(text.as_bytes(), |key, field| {
            match key {
                "type" => kind = Some(field.string()?.to_lowercase()),
                "vni" => {
                    config.vni = Vni::try_from(field.unsigned()?)
                        .map_err(|error| check(error.to_string()))?;
                }
                "port" => config.port = port(field.unsigned()?)?,
                "mtu" => config.mtu = mtu(field.unsigned()?)?,
                "gbp" => config.gbp = field.boolean()?,
                "directrouting" => config.direct_routing = field.boolean()?,
                "learning" => config.learning = field.boolean()?,
                _ => {}
            }
            Ok(())
        })?;
    }
    let unclear = match kind.as_deref() {
        None if text.is_none() => {
            Some("has no Backend: by flannel's documentation this means vxlan, by its code udp")
        }
        None | Some("") => Some(
            "has a Backend without Type: by flannel's documentation this means vxlan, by its code \
             udp",
        ),
        Some("udp") => Some("has flannel's backend type udp"),
        Some(_) => None,
    };
    let kind = match (unclear, default) {
        (Some(_), Some(default)) => default.to_lowercase(),
        (Some(found), None) => return Err(ConfigError::BackendUnclear { found }),
        (None, _) => kind.unwrap_or_default(),
    };
    if kind == "vxlan" {
        return Ok(config);
    }
    let hint = if OTHER_BACKENDS.contains(&kind.as_str()) {
        ". It is a backend of flannel: run flanneld for it, or change the type on all nodes"
    } else {
        ""
    };
    Err(ConfigError::Backend { found: kind, hint })
}

/// 0 is flannel's "not given".
fn port(value: u64) -> Result<u16, ConfigError> {
    match u16::try_from(value) {
        Ok(0) => Ok(DEFAULT_PORT),
        Ok(port) => Ok(port),
        Err(_) => Err(check(format!(
            "Backend Port {value} is out of range: 1 to 65535"
        ))),
    }
}

/// 0 is flannel's "not given".
fn mtu(value: u64) -> Result<Option<u16>, ConfigError> {
    match u16::try_from(value) {
        Ok(0) => Ok(None),
        Ok(mtu @ 626..=65_535) => Ok(Some(mtu)),
        _ => Err(check(format!(
            "Backend MTU {value} is out of range: 626 to 65535; it is the outer MTU, the device gets 50 less"
        ))),
    }
}

#[cfg(test)]
mod tests;
