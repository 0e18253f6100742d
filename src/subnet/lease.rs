//! A lease as flannel writes it: who holds a subnet, and how to reach that host.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::wire::{MacAddr, Vni, probe};

/// The only backend type of this program. Like flannel, leases are compared case-sensitively.
pub const BACKEND_TYPE: &str = "vxlan";

/// The value of a subnet key, byte for byte as the newest flannel writes it: fields in this order,
/// no blanks, `PublicIPv6` always present; then our own fields.
///
/// flannel v0.11 has no `PublicIPv6` and no `VNI`, so both are optional.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaseAttrs {
    /// Destination of VXLAN datagrams for the subnet.
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
    /// The backend's data, kept raw so that other backends' data round-trips.
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
    /// The machine that wrote it, if this program did.
    #[serde(
        rename = "Node",
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub node: Option<NodeId>,
    /// The installation and boot that wrote it, if this program did.
    #[serde(
        rename = "Instance",
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub instance: Option<NodeId>,
    /// Another host asks the holder whether it is alive: the holder answers by writing its value
    /// again.
    #[serde(
        rename = "Challenge",
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub challenge: Option<NodeId>,
    /// Version of the probes ([`crate::wire::probe`]) that its holder answers. A flannel that takes
    /// over the lease drops this field.
    #[serde(
        rename = "Probe",
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub probe: Option<u32>,
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

/// The format of a lease's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseForm {
    /// As flannel since v0.15 writes it: with `PublicIPv6` and `VNI`.
    Newest,
    /// As flannel v0.11 writes it: without both. Its parser would ignore them, but people compare
    /// values.
    V011,
}

/// Who wrote a lease: a number after flannel's own fields, which every flannel ignores. It is not
/// in `BackendData`, because flannel extracts its MAC from that text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(u64);

impl From<u64> for NodeId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl NodeId {
    /// A hash of `/etc/machine-id`, because the id itself must not be published (machine-id(5)).
    /// Below 2^53, so that every JSON parser keeps it.
    #[must_use]
    pub(crate) fn of_machine(machine_id: &str) -> Option<Self> {
        let machine_id = machine_id.trim();
        let known = machine_id.len() == 32 && machine_id.bytes().all(|b| b.is_ascii_hexdigit());
        known.then(|| Self::digest(&format!("uvxlan {machine_id}")))
    }

    /// A hash of a secret in the state directory and of the boot. A clone of the machine has
    /// another boot id; one without the state directory also has another secret.
    #[must_use]
    pub fn of_instance(secret: &str, boot_id: &str) -> Self {
        Self::digest(&format!(
            "uvxlan instance {} {}",
            secret.trim(),
            boot_id.trim()
        ))
    }

    /// A random number, for a challenge.
    #[must_use]
    pub(crate) const fn of_bits(bits: u64) -> Self {
        Self(bits >> 11)
    }

    fn digest(text: &str) -> Self {
        let digest = Sha256::digest(text);
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(digest) {
            *to = from;
        }
        Self::of_bits(u64::from_be_bytes(bytes))
    }
}

/// Our own lease.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The leased subnet.
    pub subnet: Ipv4Net,
    /// The published value.
    pub attrs: LeaseAttrs,
    /// Store revision of the last write, for compare-and-swap.
    pub revision: i64,
    /// The record has no time to live: it is a reservation, and stays one.
    pub reserved: bool,
}

impl LeaseAttrs {
    /// What a vxlan node publishes.
    ///
    /// # Errors
    /// Never in practice.
    pub fn vxlan(public_ip: Ipv4Addr, data: VxlanData) -> serde_json::Result<Self> {
        Ok(Self {
            public_ip,
            public_ipv6: None,
            backend_type: BACKEND_TYPE.to_owned(),
            backend_data: Some(serde_json::value::to_raw_value(&data)?),
            backend_v6_data: None,
            node: None,
            instance: None,
            challenge: None,
            probe: None,
        })
    }

    /// Names the machine that writes it.
    #[must_use]
    pub(crate) const fn with_node(mut self, node: NodeId) -> Self {
        self.node = Some(node);
        self
    }

    /// Names the installation that writes it.
    #[must_use]
    pub const fn with_instance(mut self, instance: NodeId) -> Self {
        self.instance = Some(instance);
        self
    }

    /// Asks its holder whether it is alive.
    #[must_use]
    pub(crate) const fn with_challenge(mut self, challenge: NodeId) -> Self {
        self.challenge = Some(challenge);
        self
    }

    /// Announces that we answer probes.
    #[must_use]
    pub(crate) fn with_probe(mut self) -> Self {
        self.probe = Some(probe::VERSION.into());
        self
    }

    /// Whether its holder answers the probes that we send.
    #[must_use]
    pub(crate) fn answers_probes(&self) -> bool {
        self.probe == Some(probe::VERSION.into())
    }

    /// Parses a value.
    ///
    /// # Errors
    /// If the bytes are not a JSON object with these fields.
    pub fn decode(value: &[u8]) -> serde_json::Result<Self> {
        object(value)
    }

    /// The value's bytes, in the newest form.
    ///
    /// # Errors
    /// Never in practice.
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }

    /// The value's bytes in this form.
    ///
    /// # Errors
    /// Never in practice.
    pub fn encode_as(&self, form: LeaseForm) -> serde_json::Result<Vec<u8>> {
        if form == LeaseForm::Newest {
            return self.encode();
        }
        let data = self.backend_data.as_ref();
        let backend_data = match data.map(|data| VxlanData::decode(data)) {
            Some(Ok(data)) if self.backend_type == BACKEND_TYPE => {
                let old = VxlanData { vni: None, ..data };
                Some(serde_json::value::to_raw_value(&old)?)
            }
            _ => self.backend_data.clone(),
        };
        serde_json::to_vec(&V011 {
            public_ip: self.public_ip,
            backend_type: &self.backend_type,
            backend_data,
            node: self.node,
            instance: self.instance,
            challenge: self.challenge,
            probe: self.probe,
        })
    }
}

/// One of our numbers; anything else under its name is ignored.
fn lenient<'de, T: TryFrom<u64>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    let found = serde_json::Value::deserialize(from)?;
    Ok(found.as_u64().and_then(|number| T::try_from(number).ok()))
}

/// [`LeaseForm::V011`], then our own fields.
#[derive(Serialize)]
struct V011<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "BackendType", skip_serializing_if = "str::is_empty")]
    backend_type: &'a str,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    backend_data: Option<Box<RawValue>>,
    #[serde(rename = "Node", skip_serializing_if = "Option::is_none")]
    node: Option<NodeId>,
    #[serde(rename = "Instance", skip_serializing_if = "Option::is_none")]
    instance: Option<NodeId>,
    #[serde(rename = "Challenge", skip_serializing_if = "Option::is_none")]
    challenge: Option<NodeId>,
    #[serde(rename = "Probe", skip_serializing_if = "Option::is_none")]
    probe: Option<u32>,
}

impl VxlanData {
    /// Parses a lease's `BackendData`.
    pub(crate) fn decode(data: &RawValue) -> serde_json::Result<Self> {
        object(data.get().as_bytes())
    }
}

/// Parses an object. serde's derived parsers also accept an array of the fields; flannel's does
/// not, and all nodes must agree on what is a lease.
fn object<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    if !json.trim_ascii_start().starts_with(b"{") {
        return Err(serde_json::Error::custom("expected a JSON object"));
    }
    serde_json::from_slice(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_written_as_newest_flannel_writes_it() {
        let data = VxlanData {
            vni: Some(Vni::DEFAULT),
            vtep_mac: MacAddr([0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44]),
        };
        let attrs = LeaseAttrs::vxlan(Ipv4Addr::new(192, 168, 64, 3), data).unwrap();
        assert_eq!(
            String::from_utf8(attrs.encode().unwrap()).unwrap(),
            r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#
        );
    }

    #[test]
    fn a_node_is_named_behind_what_flannel_reads() {
        let data = VxlanData {
            vni: Some(Vni::DEFAULT),
            vtep_mac: MacAddr([0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44]),
        };
        let id = |text: &str| NodeId::of_machine(text);
        let node = id("0123456789abcdef0123456789abcdef\n").unwrap();
        assert_ne!(Some(node), id("1123456789abcdef0123456789abcdef"));
        assert_eq!((id(""), id("uninitialized")), (None, None));
        let plain = LeaseAttrs::vxlan(Ipv4Addr::new(192, 168, 64, 3), data).unwrap();
        assert_eq!((plain.node, plain.instance), (None, None));
        let without = String::from_utf8(plain.encode().unwrap()).unwrap();
        let bytes = plain.clone().with_node(node).encode().unwrap();
        assert_eq!(LeaseAttrs::decode(&bytes).unwrap().node, Some(node));
        let text = String::from_utf8(bytes).unwrap();
        let rest = text.strip_prefix(&without[..without.len() - 1]).unwrap();
        assert!(rest.starts_with(",\"Node\":"), "{text}");
        let instance = NodeId::of_instance("secret\n", "boot");
        assert_eq!(instance, NodeId::of_instance("secret", "boot\n"));
        for (secret, boot) in [("secret", "other"), ("other", "boot"), ("boot", "secret")] {
            assert_ne!(instance, NodeId::of_instance(secret, boot));
        }
        let all = plain.with_node(node).with_instance(instance);
        for form in [LeaseForm::Newest, LeaseForm::V011] {
            let bytes = all.encode_as(form).unwrap();
            let read = LeaseAttrs::decode(&bytes).unwrap();
            assert_eq!((read.node, read.instance), (Some(node), Some(instance)));
        }
    }

    #[test]
    fn what_others_have_under_our_fields_names_is_ignored() {
        for foreign in [
            "\"a-name\"",
            "null",
            "-1",
            "1.5",
            "{\"a\":[1]}",
            "[]",
            "true",
        ] {
            let text = format!(
                r#"{{"PublicIP":"1.2.3.4","Node":{foreign},"Instance":{foreign},"Challenge":{foreign},"Probe":{foreign}}}"#
            );
            let attrs = LeaseAttrs::decode(text.as_bytes()).unwrap();
            let ours = (attrs.node, attrs.instance, attrs.challenge);
            assert_eq!(ours, (None, None, None), "{foreign}");
            assert_eq!(attrs.probe, None, "{foreign}");
        }
    }

    #[test]
    fn a_promise_to_answer_probes_stands_behind_what_flannel_reads() {
        let data = VxlanData {
            vni: Some(Vni::DEFAULT),
            vtep_mac: MacAddr([0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44]),
        };
        let plain = LeaseAttrs::vxlan(Ipv4Addr::new(192, 168, 64, 3), data).unwrap();
        assert!(!plain.answers_probes());
        let promised = plain.clone().with_probe();
        for form in [LeaseForm::Newest, LeaseForm::V011] {
            let bytes = promised.encode_as(form).unwrap();
            assert!(LeaseAttrs::decode(&bytes).unwrap().answers_probes());
            let flannels = plain.encode_as(form).unwrap();
            let (last, rest) = flannels.split_last().unwrap();
            assert_eq!([rest, b",\"Probe\":1", &[*last]].concat(), bytes);
        }
        let later = br#"{"PublicIP":"1.2.3.4","Probe":2}"#;
        assert!(!LeaseAttrs::decode(later).unwrap().answers_probes());
    }

    #[test]
    fn a_lease_for_the_v2_api_is_written_as_flannel_v0_11_writes_it() {
        let data = VxlanData {
            vni: Some(Vni::DEFAULT),
            vtep_mac: MacAddr([0xf6, 0xdf, 0xb4, 0xd0, 0x5d, 0x72]),
        };
        let attrs = LeaseAttrs::vxlan(Ipv4Addr::new(10, 211, 55, 101), data).unwrap();
        assert_eq!(
            String::from_utf8(attrs.encode_as(LeaseForm::V011).unwrap()).unwrap(),
            r#"{"PublicIP":"10.211.55.101","BackendType":"vxlan","BackendData":{"VtepMAC":"f6:df:b4:d0:5d:72"}}"#
        );
        assert_eq!(
            attrs.encode_as(LeaseForm::Newest).unwrap(),
            attrs.encode().unwrap()
        );
    }

    #[test]
    fn leases_of_other_versions_and_backends_round_trip() {
        for value in [
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#,
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":"fd00::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"}}"#,
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"a b"}}"#,
        ] {
            let attrs = LeaseAttrs::decode(value.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(attrs.encode().unwrap()).unwrap(), value);
        }
    }

    #[test]
    fn arrays_of_the_fields_are_no_leases() {
        let array = br#"["1.2.3.4",null,"vxlan",{"VtepMAC":"c6:d2:32:6f:8f:44"},null]"#;
        assert!(LeaseAttrs::decode(array).is_err());
        let data = |text: &str| {
            let raw = RawValue::from_string(text.to_owned()).unwrap();
            VxlanData::decode(&raw).is_ok()
        };
        assert!(data(r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#));
        assert!(!data(r#"[1,"c6:d2:32:6f:8f:44"]"#));
    }
}
