use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> Result<NetworkConfig, ConfigError> {
    NetworkConfig::parse(text.as_bytes(), Some("vxlan"))
}

fn summary(text: &str) -> String {
    match parse(text) {
        Ok(config) => format!(
            "{} /{} {} {}",
            config.network, config.subnet_len, config.subnet_min, config.subnet_max
        ),
        Err(error) => error.to_string(),
    }
}

#[test]
fn computed_defaults_are_flannels() {
    let table = [
        ("10.3.0.0/16", "10.3.0.0/16 /24 10.3.1.0 10.3.255.0"),
        ("10.3.5.7/16", "10.3.0.0/16 /24 10.3.1.0 10.3.255.0"),
        ("10.3.0.0/22", "10.3.0.0/22 /24 10.3.1.0 10.3.3.0"),
        ("10.3.0.0/23", "10.3.0.0/23 /25 10.3.0.128 10.3.1.128"),
        ("10.3.0.0/24", "10.3.0.0/24 /26 10.3.0.64 10.3.0.192"),
        ("10.3.0.0/27", "10.3.0.0/27 /29 10.3.0.8 10.3.0.24"),
        ("10.3.0.0/28", "10.3.0.0/28 /30 10.3.0.4 10.3.0.12"),
        (
            "10.3.0.0/29",
            "network is too small. Minimum useful network prefix is /28",
        ),
        (
            "0.0.0.0/0",
            "please define a correct Network parameter in the flannel config",
        ),
    ];
    for (network, expected) in table {
        assert_eq!(summary(&format!(r#"{{"Network": "{network}"}}"#)), expected);
    }
    assert_eq!(
        summary("{}"),
        "please define a correct Network parameter in the flannel config"
    );
}

#[test]
fn flannels_own_rows_read_alike() {
    assert_eq!(
        summary(r#"{ "network": "10.3.0.0/16" }"#),
        "10.3.0.0/16 /24 10.3.1.0 10.3.255.0"
    );
    let given = r#"{ "Network": "10.3.0.0/16", "SubnetMin": "10.3.5.0", "SubnetMax": "10.3.8.0", "SubnetLen": 28 }"#;
    assert_eq!(summary(given), "10.3.0.0/16 /28 10.3.5.0 10.3.8.0");
    let seed = r#"{"Network": "172.20.0.0/16", "SubnetMin": "172.20.10.0", "SubnetMax": "172.20.254.0", "Backend": {"Type":"vxlan"}}"#;
    assert_eq!(summary(seed), "172.20.0.0/16 /24 172.20.10.0 172.20.254.0");
}

#[test]
fn ipv6_is_computed_and_checked() {
    let ipv6 = |rest: &str| {
        let text = format!(r#"{{"Network": "10.3.0.0/16", "enableIPv6": true, {rest}}}"#);
        match parse(&text) {
            Ok(config) => config.ipv6.map_or("none".into(), |v6| {
                format!("/{} {} {}", v6.subnet_len, v6.subnet_min, v6.subnet_max)
            }),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(
        ipv6(r#""ipv6Network": "fc00::/48""#),
        "/64 fc00:0:0:1:: fc00:0:0:ffff::"
    );
    assert_eq!(
        ipv6(r#""IPv6Network": "fc00::/124""#),
        "/126 fc00::4 fc00::c"
    );
    let given = r#""IPv6Network": "fc00::/48", "IPv6SubnetMin": "fc00:0:0:1::", "IPv6SubnetMax": "fc00:0:0:f::", "IPv6SubnetLen": 124"#;
    assert_eq!(ipv6(given), "/124 fc00:0:0:1:: fc00:0:0:f::");
    assert_eq!(
        ipv6(r#""IPv6Network": "fc00::/125""#),
        "IPv6Network is too small. Minimum useful network prefix is /124"
    );
    assert_eq!(
        ipv6(r#""IPv6Network": "fc00::/48", "IPv6SubnetLen": 127"#),
        "SubnetLen must be less than /127"
    );
    assert_eq!(
        ipv6(r#""x": 1"#),
        "please define a correct IPv6Network parameter in the flannel config"
    );
}

#[test]
fn each_check_has_flannels_text() {
    let network = |rest: &str| summary(&format!(r#"{{"Network": "10.3.0.0/16", {rest}}}"#));
    let table = [
        (r#""SubnetLen": 31"#, "SubnetLen must be less than /31"),
        (
            r#""SubnetLen": 4294967320"#,
            "SubnetLen must be less than /31",
        ),
        (
            r#""SubnetLen": 17"#,
            "network must be able to accommodate at least four subnets",
        ),
        (
            r#""SubnetMin": "10.4.0.0""#,
            "SubnetMin is not in the range of the Network",
        ),
        (
            r#""SubnetMax": "10.2.0.0""#,
            "SubnetMax is not in the range of the Network",
        ),
        (
            r#""SubnetMin": "10.3.5.1""#,
            "SubnetMin is not on a SubnetLen boundary: 10.3.5.1",
        ),
        (
            r#""SubnetMax": "10.3.5.128""#,
            "SubnetMax is not on a SubnetLen boundary: 10.3.5.128",
        ),
        (
            r#""EnableIPv4": false"#,
            "none defined stack: EnableIPv4 and EnableIPv6 are both false",
        ),
    ];
    for (rest, expected) in table {
        assert_eq!(network(rest), expected, "{rest}");
    }
}

#[test]
fn json_is_read_as_go_reads_it() {
    let last =
        r#"{"Network": "10.1.0.0/16", "NETWORK": "10.2.0.0/16", "network": null, "Unknown": [1]}"#;
    assert_eq!(summary(last), "10.2.0.0/16 /24 10.2.1.0 10.2.255.0");
    assert_eq!(
        summary(r#"{"Network": "10.1.0.0/16", "SubnetLen": "24"}"#),
        "error decoding: SubnetLen must be a whole number that is not negative, not \"24\""
    );
    for text in [
        "",
        "[]",
        "{",
        "3",
        r#"{"Network": 1}"#,
        r#"{"Network": "fc00::/48"}"#,
        r#"{"Network": "10.0.0.0"}"#,
    ] {
        assert!(parse(text).is_err(), "{text}");
    }
}

#[test]
fn vxlan_options_are_read_and_bounded() {
    let backend = |options: &str| {
        let text =
            format!(r#"{{"Network": "10.1.0.0/16", "Backend": {{"Type": "VXLAN", {options}}}}}"#);
        NetworkConfig::parse(text.as_bytes(), None)
    };
    let config = backend(r#""VNI": 4096, "Port": 4789, "MTU": 1400, "GBP": true, "DirectRouting": true, "Learning": true, "MacPrefix": "0E-2A", "Mac": "x""#).unwrap();
    assert_eq!(
        (
            config.backend.vni.get(),
            config.backend.port,
            config.backend.mtu
        ),
        (4096, 4789, Some(1400))
    );
    assert_eq!(config.without_effect(), ["Backend.GBP", "Backend.Learning"]);
    assert!(config.backend.direct_routing);
    let plain = backend(r#""Port": 0, "MTU": 0"#).unwrap();
    assert_eq!(
        (
            plain.backend.vni.get(),
            plain.backend.port,
            plain.backend.mtu
        ),
        (1, 8472, None)
    );
    for bad in [
        r#""VNI": 16777216"#,
        r#""Port": 65536"#,
        r#""MTU": 100"#,
        r#""VNI": -1"#,
        r#""GBP": 1"#,
    ] {
        assert!(backend(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_backend_is_never_guessed() {
    let verdict = |backend: &str, default| {
        let text = format!(r#"{{"Network": "10.1.0.0/16"{backend}}}"#);
        NetworkConfig::parse(text.as_bytes(), default)
    };
    for (backend, found) in [
        ("", "has no Backend"),
        (r#", "Backend": {}"#, "has a Backend without Type"),
        (
            r#", "Backend": {"Type": "udp"}"#,
            "has flannel's backend type udp",
        ),
    ] {
        let error = verdict(backend, None).unwrap_err();
        assert!(matches!(error, ConfigError::BackendUnclear { .. }));
        let text = error.to_string();
        assert!(text.starts_with(&format!("the config {found}")), "{text}");
        assert!(text.contains("--backend-default vxlan"), "{text}");
        // Whose fault it is, only where flannel contradicts itself.
        assert_eq!(text.contains("documentation"), !backend.contains("udp"));
        assert!(verdict(backend, Some("vxlan")).is_ok());
    }
    let other = verdict(r#", "Backend": {"Type": "Host-GW"}"#, Some("vxlan"))
        .unwrap_err()
        .to_string();
    assert!(
        other.starts_with(r#"backend type "host-gw" is not supported; supported is: vxlan"#),
        "{other}"
    );
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = NetworkConfig::parse(&bytes, None);
    }

    #[test]
    fn whatever_passes_is_consistent(network: u32, prefix_len in 0u8..=32, len in 0u64..40) {
        let network = Ipv4Net::new(Ipv4Addr::from_bits(network), prefix_len).unwrap();
        let text = format!(r#"{{"Network": "{network}", "SubnetLen": {len}}}"#);
        if let Ok(config) = parse(&text) {
            prop_assert!(config.network.contains(&config.subnet_min));
            prop_assert!(config.network.contains(&config.subnet_max));
            prop_assert!(config.subnet_min <= config.subnet_max);
            prop_assert!(config.subnet_len >= prefix_len + 2);
        }
    }
}
