//! flannel's network config, which anybody who may write to the store can write.
#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use uvxlan::subnet::allocate;
use uvxlan::subnet::config::{ConfigError, NetworkConfig};

fuzz_target!(|text: &[u8]| {
    let strict = NetworkConfig::parse(text, None);
    let lenient = NetworkConfig::parse(text, Some("vxlan"));
    match (&strict, &lenient) {
        (Ok(strict), Ok(lenient)) => assert_eq!(strict, lenient),
        (Err(ConfigError::BackendUnclear { .. }), Ok(_)) => {}
        (Err(strict), Err(lenient)) => assert_eq!(strict, lenient),
        other => panic!("the default type changes more than the type: {other:?}"),
    }
    match &lenient {
        Ok(config) => is_consistent(config),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

fn is_consistent(config: &NetworkConfig) {
    let network = config.network;
    assert_eq!(network, network.trunc());
    assert!((1..=28).contains(&network.prefix_len()));
    assert!((network.prefix_len() + 2..=30).contains(&config.subnet_len));
    let host_bits = u32::MAX >> config.subnet_len;
    for subnet in [config.subnet_min, config.subnet_max] {
        assert!(network.contains(&subnet), "{subnet} outside {network}");
        assert_eq!(subnet.to_bits() & host_bits, 0, "{subnet} has host bits");
        let last = Ipv4Addr::from_bits(subnet.to_bits() | host_bits);
        assert!(network.contains(&last), "{subnet} ends outside {network}");
        let prefix = format!("{subnet}/{}", config.subnet_len);
        assert_eq!(
            allocate::compatible(config, prefix.parse().expect("a prefix")),
            config.subnet_min <= config.subnet_max
        );
    }
    if let Some(ipv6) = &config.ipv6 {
        let network = ipv6.network;
        assert_eq!(network, network.trunc());
        assert!((1..=124).contains(&network.prefix_len()));
        assert!((network.prefix_len() + 2..=126).contains(&ipv6.subnet_len));
        let host_bits = u128::MAX >> ipv6.subnet_len;
        for subnet in [ipv6.subnet_min, ipv6.subnet_max] {
            assert!(network.contains(&subnet), "{subnet} outside {network}");
            assert_eq!(subnet.to_bits() & host_bits, 0, "{subnet} has host bits");
        }
    }
    assert_ne!(config.backend.port, 0);
    assert!(config.backend.mtu.is_none_or(|mtu| mtu >= 626));
    assert_eq!(
        config.without_effect().contains(&"EnableIPv6"),
        config.ipv6.is_some()
    );
}
