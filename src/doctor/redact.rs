//! Masks configs and leases for a report: fields known to hold no secret are shown, of all others
//! only the name. Other backends of flannel keep keys in both.

use serde_json::{Map, Value};

/// Fields of a config and of a lease.
const TOP: &[&str] = &[
    "Network",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
    "IPv6Network",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "PublicIP",
    "PublicIPv6",
    "BackendType",
    "Node",
];
/// Fields that contain other fields.
const GROUPS: &[&str] = &["Backend", "BackendData", "BackendV6Data"];
/// Fields in those.
const INNER: &[&str] = &[
    "Type",
    "VNI",
    "Port",
    "MTU",
    "GBP",
    "DirectRouting",
    "Learning",
    "VtepMAC",
    "MacPrefix",
];

/// The text of a config or a lease, on one line.
pub(super) fn record(text: &[u8]) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_slice(text) else {
        return format!("{} bytes that are not a JSON object", text.len());
    };
    let mut shown = known(fields.clone(), TOP);
    for (name, value) in fields {
        if let (true, Value::Object(inner)) = (is_one_of(&name, GROUPS), value) {
            shown.insert(name, Value::Object(known(inner, INNER)));
        }
    }
    Value::Object(shown).to_string()
}

/// The fields, with unknown and structured values masked.
fn known(fields: Map<String, Value>, names: &[&str]) -> Map<String, Value> {
    let masked = fields.into_iter().map(|(name, value)| {
        let plain = !matches!(value, Value::Object(_) | Value::Array(_));
        match plain && is_one_of(&name, names) {
            true => (name, value),
            false => (name, "...".into()),
        }
    });
    masked.collect()
}

/// Go's JSON reader ignores case.
fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_other_backends_are_masked() {
        let shown = record(br#"{"Network": "10.5.0.0/16", "Backend": {"Type": "ipsec", "UDPEncap": true, "PSK": "geheim"}}"#);
        assert_eq!(
            shown,
            r#"{"Backend":{"PSK":"...","Type":"ipsec","UDPEncap":"..."},"Network":"10.5.0.0/16"}"#
        );
        let shown = record(br#"{"PublicIP": "192.0.2.1", "backendtype": "extension", "BackendData": "geheim", "Backend": [{"Type": "geheim"}]}"#);
        assert!(!shown.contains("geheim"), "{shown}");
        assert!(shown.contains(r#""PublicIP":"192.0.2.1""#) && shown.contains("extension"));
    }

    #[test]
    fn what_is_not_an_object_is_not_shown_at_all() {
        assert_eq!(record(b"geheim"), "6 bytes that are not a JSON object");
        assert_eq!(
            record(br#"["geheim"]"#),
            "10 bytes that are not a JSON object"
        );
    }
}
