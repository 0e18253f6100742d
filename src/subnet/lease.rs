//! A lease as flannel writes it: who holds a subnet, and how to reach them.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::wire::{MacAddr, Vni};

/// The only backend type that this program speaks, compared case-sensitively in leases
/// as flannel does.
pub const BACKEND_TYPE: &str = "vxlan";

/// The value stored under a subnet key, byte for byte as newest flannel writes it:
/// fields in this order, no blanks, `PublicIPv6` always present.
///
/// v0.11 of flannel has no `PublicIPv6` and no `VNI`; both are optional when read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaseAttrs {
    /// Address to which VXLAN datagrams for the subnet go.
    #[serde(rename = "PublicIP")]
    pub public_ip: Ipv4Addr,
    /// IPv6 counterpart, `null` when unset.
    #[serde(rename = "PublicIPv6", default)]
    pub public_ipv6: Option<Ipv6Addr>,
    /// `vxlan`, or another backend's name, or empty.
    #[serde(
        rename = "BackendType",
        default,
        skip_serializing_if = "String::is_empty"
    )]
    pub backend_type: String,
    /// What the backend publishes, kept raw so that foreign backends round-trip.
    #[serde(
        rename = "BackendData",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub backend_data: Option<Box<RawValue>>,
    /// IPv6 counterpart of `backend_data`.
    #[serde(
        rename = "BackendV6Data",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub backend_v6_data: Option<Box<RawValue>>,
}

/// `BackendData` of the vxlan backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VxlanData {
    /// Network identifier; absent in leases of flannel before v0.14.
    #[serde(rename = "VNI", default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<Vni>,
    /// MAC address of the VTEP, destination of the inner Ethernet header.
    #[serde(rename = "VtepMAC")]
    pub vtep_mac: MacAddr,
}

/// A subnet with what its holder published.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The leased subnet.
    pub subnet: Ipv4Net,
    /// The published value.
    pub attrs: LeaseAttrs,
    /// Store revision at which the record was last written: the base of a compare.
    pub revision: i64,
    /// A record without time to live: a reservation, kept so.
    pub reserved: bool,
}
