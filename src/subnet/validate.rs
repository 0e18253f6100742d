//! Validation of records: they are external input, so each field is checked.
//!
//! flannel checks next to nothing here, so anybody who can write to the prefix in etcd can set
//! routes on every node. An invalid record affects only itself.

use std::collections::HashSet;
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::key::SubnetKey;
use super::lease::{BACKEND_TYPE, LeaseAttrs, VxlanData};
use crate::wire::Vni;

/// Largest value that is parsed.
pub(crate) const MAX_VALUE_LEN: usize = 64 * 1024;

/// Deepest nesting that is parsed; a lease has two levels.
pub(crate) const MAX_DEPTH: usize = 16;

/// The network that a record must fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The overlay network.
    pub network: Ipv4Net,
    /// Our VNI.
    pub vni: Vni,
}

/// A valid record of a vxlan node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerRecord {
    /// The leased subnet.
    pub subnet: Ipv4Net,
    /// Destination of its datagrams.
    pub public_ip: Ipv4Addr,
    /// Its VTEP.
    pub vxlan: VxlanData,
    /// Whether it announces that it answers our probes.
    pub answers_probes: bool,
}

macro_rules! rejections {
    ($($(#[$doc:meta])* $name:ident => $label:literal, $text:literal;)*) => {
        /// Why a record is refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Rejection { $($(#[$doc])* $name,)* }

        impl Rejection {
            /// The stable name, for metrics and JSON.
            #[must_use]
            pub(crate) const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// The reason, for logs.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

rejections! {
    /// The key is not a canonical subnet key.
    Key => "key", "the key is not of the form a.b.c.d-len, canonically written";
    /// The subnet lies outside the network.
    OutsideNetwork => "outside_network", "the subnet is not inside the network";
    /// The value is larger than any lease.
    TooLarge => "too_large", "the value is larger than 64 KiB";
    /// The value is not a lease.
    Value => "value", "the value is not a lease in flannel's JSON";
    /// Another backend of flannel.
    OtherBackend => "other_backend", "the lease is of another backend type";
    /// The public address is not a host's, or is inside the overlay.
    PublicIp => "public_ip", "PublicIP cannot be the address of a host outside the overlay";
    /// The backend data is missing or is not vxlan data.
    BackendData => "backend_data", "BackendData is not {\"VNI\":…,\"VtepMAC\":\"…\"}";
    /// The MAC is multicast or zero.
    VtepMac => "vtep_mac", "VtepMAC is multicast or zero";
    /// Another VNI than ours.
    OtherVni => "other_vni", "the VNI is not this network's";
    /// Our own public address, under a subnet that is not ours.
    OwnAddress => "own_address", "PublicIP is our own";
    /// The prefix length is not the network config's.
    PrefixLen => "prefix_len", "the prefix length is not the network's SubnetLen (--mixed-lengths accepts others)";
    /// The JSON is nested deeper than a lease.
    TooDeep => "too_deep", "the value is nested deeper than 16 levels";
    /// The subnet contains an address that this host needs outside the overlay.
    Protected => "protected", "the subnet contains an address that this host needs outside the overlay";
    /// An older lease has the same public address.
    DuplicateAddress => "duplicate_address", "PublicIP is that of an older lease";
    /// Our own MAC.
    OwnMac => "own_mac", "VtepMAC is our own";
    /// Another lease has the same MAC: logged only, the record is in force.
    DuplicateMac => "duplicate_mac", "VtepMAC is also another lease's; both are in force";
    /// More records than one network may have.
    TooMany => "too_many", "there are 65536 leases already";
    /// The subnet overlaps that of an older lease, or our own.
    Overlap => "overlap", "the subnet overlaps that of an older lease, or our own";
}

/// Checks one record on its own.
///
/// # Errors
/// The first check that fails.
pub fn check(name: &str, value: &[u8], context: &Context) -> Result<PeerRecord, Rejection> {
    let key: SubnetKey = name.parse().map_err(|_| Rejection::Key)?;
    let subnet = key.v4;
    let martian = |net: &Ipv4Net| net.contains(&subnet) || subnet.contains(net);
    if !context.network.contains(&subnet) || MARTIANS.iter().any(martian) {
        return Err(Rejection::OutsideNetwork);
    }
    if value.len() > MAX_VALUE_LEN {
        return Err(Rejection::TooLarge);
    }
    if is_deeper_than(value, MAX_DEPTH) {
        return Err(Rejection::TooDeep);
    }
    let attrs = LeaseAttrs::decode(value).map_err(|_| Rejection::Value)?;
    if serde_json::from_slice::<Unambiguous>(value).is_err() {
        return Err(Rejection::Value);
    }
    if attrs.backend_type != BACKEND_TYPE {
        return Err(Rejection::OtherBackend);
    }
    if !is_host(attrs.public_ip) || context.network.contains(&attrs.public_ip) {
        return Err(Rejection::PublicIp);
    }
    let answers_probes = attrs.answers_probes();
    let data = attrs.backend_data.ok_or(Rejection::BackendData)?;
    let vxlan = VxlanData::decode(&data).map_err(|_| Rejection::BackendData)?;
    if !vxlan.vtep_mac.is_valid_vtep() {
        return Err(Rejection::VtepMac);
    }
    if vxlan.vni.is_some_and(|vni| vni != context.vni) {
        return Err(Rejection::OtherVni);
    }
    Ok(PeerRecord {
        subnet,
        public_ip: attrs.public_ip,
        vxlan,
        answers_probes,
    })
}

/// No subnet may overlap these, whatever the network config says.
const MARTIANS: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// Whether brackets outside strings nest deeper than `limit`. Runs on bytes, before anything is
/// parsed.
fn is_deeper_than(json: &[u8], limit: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limit {
            return true;
        }
    }
    false
}

/// JSON in which no object has a member twice. flannel's parser (Go) takes the last one and
/// ignores case, so `PublicIP` and `publicip` would be one member for flannel's nodes and two for
/// us.
struct Unambiguous;

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Unambiguous {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without duplicate members")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            // Go also folds a few letters beyond ASCII: the Kelvin sign, the long s.
            let folded = key.to_uppercase().to_lowercase();
            if !seen.insert(folded) {
                return Err(A::Error::custom("a duplicate member"));
            }
            map.next_value::<Self>()?;
        }
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }
}

/// Whether an address can be a host's: not 0/8, loopback, link-local, multicast, 240/4 or
/// broadcast.
fn is_host(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first < 224 && !address.is_loopback() && !address.is_link_local()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn context() -> Context {
        Context {
            network: "172.20.0.0/16".parse().unwrap(),
            vni: Vni::DEFAULT,
        }
    }

    const GOOD: &str = r#"{"PublicIP":"10.211.55.101","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"f6:df:b4:d0:5d:72"}}"#;

    #[test]
    fn leases_of_every_flannel_are_accepted() {
        let v0_11 = r#"{"PublicIP":"10.211.55.101","BackendType":"vxlan","BackendData":{"VtepMAC":"f6:df:b4:d0:5d:72"}}"#;
        let extended = GOOD.replace("{\"VNI\"", "{\"Node\":\"x\",\"VNI\"");
        for value in [GOOD, v0_11, &extended] {
            let record = check("172.20.97.0-24", value.as_bytes(), &context()).unwrap();
            assert_eq!(record.subnet.to_string(), "172.20.97.0/24");
            assert_eq!(record.public_ip, Ipv4Addr::new(10, 211, 55, 101));
            assert_eq!(record.vxlan.vtep_mac.to_string(), "f6:df:b4:d0:5d:72");
        }
    }

    #[test]
    fn each_fault_has_its_own_reason() {
        let name = "172.20.97.0-24";
        let table = [
            ("x0.0.0.0-0", GOOD.to_owned(), Rejection::Key),
            ("172.20.97.1-24", GOOD.to_owned(), Rejection::Key),
            ("10.0.0.0-24", GOOD.to_owned(), Rejection::OutsideNetwork),
            ("172.16.0.0-12", GOOD.to_owned(), Rejection::OutsideNetwork),
            (
                name,
                format!("{GOOD}{}", " ".repeat(MAX_VALUE_LEN)),
                Rejection::TooLarge,
            ),
            (
                name,
                GOOD.replace("null", &format!("{}{}", "[".repeat(40), "]".repeat(40))),
                Rejection::TooDeep,
            ),
            (
                name,
                GOOD.replace("\"PublicIPv6\":null", "\"PublicIP\":\"10.9.9.9\""),
                Rejection::Value,
            ),
            (name, String::new(), Rejection::Value),
            (
                name,
                r#"["10.211.55.101",null,"vxlan",{"VtepMAC":"f6:df:b4:d0:5d:72"},null]"#.to_owned(),
                Rejection::Value,
            ),
            (name, GOOD.replace("10.211", "999.1"), Rejection::Value),
            (
                name,
                GOOD.replace("vxlan", "VXLAN"),
                Rejection::OtherBackend,
            ),
            (
                name,
                GOOD.replace("vxlan", "host-gw"),
                Rejection::OtherBackend,
            ),
            (
                name,
                GOOD.replace("10.211.55.101", "172.20.1.1"),
                Rejection::PublicIp,
            ),
            (
                name,
                GOOD.replace("10.211.55.101", "127.0.0.1"),
                Rejection::PublicIp,
            ),
            (
                name,
                GOOD.replace("10.211.55.101", "224.0.0.1"),
                Rejection::PublicIp,
            ),
            (
                name,
                GOOD.replace("10.211.55.101", "0.0.0.0"),
                Rejection::PublicIp,
            ),
            (
                name,
                GOOD.replace("f6:df:b4:d0:5d:72", "f6:df"),
                Rejection::BackendData,
            ),
            (
                name,
                GOOD.replace("f6:df:b4:d0:5d:72", "f6:df:b4:d0:5d:72:01:02"),
                Rejection::BackendData,
            ),
            (
                name,
                GOOD.replace("\"VNI\":1", "\"VNI\":16777216"),
                Rejection::BackendData,
            ),
            (name, GOOD.replace("f6:df", "f7:df"), Rejection::VtepMac),
            (
                name,
                GOOD.replace("f6:df:b4:d0:5d:72", "00:00:00:00:00:00"),
                Rejection::VtepMac,
            ),
            (
                name,
                GOOD.replace("\"VNI\":1", "\"VNI\":2"),
                Rejection::OtherVni,
            ),
        ];
        for (name, value, expected) in table {
            assert_eq!(
                check(name, value.as_bytes(), &context()),
                Err(expected),
                "{name} {value:.120}"
            );
        }
    }

    #[test]
    fn a_member_twice_is_refused_as_go_would_see_it() {
        let with = |more: &str| GOOD.replace("{\"VNI\"", &format!("{more}\"VNI\""));
        for (more, believed) in [
            (
                "{\"x\":1,\"y\":[{\"a\":null,\"b\":[1.5,true,\"s\"]}],",
                true,
            ),
            ("{\"vni\":1,", false),
            ("{\"x\":1,\"X\":2,", false),
            ("{\"y\":[{\"a\":1,\"a\":1}],", false),
            ("{\"k\":1,\"\u{212a}\":1,", false),
            ("{\"\u{17f}\":1,\"S\":1,", false),
            ("{\"VtepMAC\":\"0e:00:00:00:00:01\",", false),
            ("{\"vtepmac\":\"0e:00:00:00:00:01\",", false),
        ] {
            let found = check("172.20.97.0-24", with(more).as_bytes(), &context());
            assert_eq!(found.is_ok(), believed, "{more}");
        }
        for twin in [
            "publicip",
            "PUBLICIP",
            "PublicIP",
            "publicipv6",
            "backendtype",
            "backenddata",
        ] {
            let text = GOOD.replacen('{', &format!("{{\"{twin}\":\"10.9.9.9\","), 1);
            let found = check("172.20.97.0-24", text.as_bytes(), &context());
            assert_eq!(found, Err(Rejection::Value), "{twin}");
        }
        // Unknown members of other programs are ignored.
        let foreign = GOOD.replacen('{', "{\"Node\":\"a-name\",\"unknown\":1,", 1);
        assert!(check("172.20.97.0-24", foreign.as_bytes(), &context()).is_ok());
    }

    #[test]
    fn brackets_in_strings_are_not_depth() {
        let text = GOOD.replace(
            "{\"VNI\"",
            &format!("{{\"x\":\"\\\"{}\",\"VNI\"", "[".repeat(40)),
        );
        assert!(check("172.20.97.0-24", text.as_bytes(), &context()).is_ok());
    }

    #[test]
    fn no_network_makes_a_martian_a_subnet() {
        let all = Context {
            network: "0.0.0.0/0".parse().unwrap(),
            vni: Vni::DEFAULT,
        };
        for name in [
            "127.0.1.0-24",
            "169.254.3.0-24",
            "224.0.1.0-24",
            "0.1.0.0-16",
            "0.0.0.0-1",
        ] {
            let found = check(name, GOOD.as_bytes(), &all);
            assert_eq!(found, Err(Rejection::OutsideNetwork), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(name in ".{0,30}", value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = check(&name, &value, &context());
            let _ = check("172.20.97.0-24", &value, &context());
        }
    }
}
