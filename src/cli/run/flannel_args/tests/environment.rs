//! Environment variables, and where a value comes from.

use super::*;

#[test]
fn command_line_wins_over_environment_and_environment_over_default() {
    let variables = [
        ("FLANNELD_ETCD_PREFIX", "/env"),
        ("FLANNELD_IFACE", "eth9"),
        ("FLANNELD_IP_MASQ", "true"),
        ("FLANNELD_V", "2"),
        ("FLANNELD_SUBNET_FILE", ""),
        ("UVXLAN_STATE_DIR", "/env/state"),
        ("PATH", "/bin"),
    ];
    let options = options_with(&["--iface=eth0", "--ip-masq=false"], &variables);
    assert_eq!(options.store.etcd.prefix, "/env");
    assert_eq!(
        options.iface,
        ["eth0"],
        "environment does not add to the command line"
    );
    assert!(!options.ip_masq);
    assert_eq!(options.verbosity, 2);
    assert_eq!(options.subnet_file, Path::new("/run/flannel/subnet.env"));
    assert_eq!(options.state_dir, Path::new("/env/state"));
    let origins = [
        ("etcd-prefix", Origin::Environment),
        ("iface", Origin::CommandLine),
        ("ip-masq", Origin::CommandLine),
        ("subnet-file", Origin::Default),
        ("state-dir", Origin::Environment),
    ];
    for (name, origin) in origins {
        assert_eq!(options.origin(name), Some(origin), "{name}");
    }
    let setting = options
        .settings
        .iter()
        .find(|setting| setting.name == "etcd-prefix");
    assert_eq!(
        setting.unwrap().to_string(),
        "etcd-prefix=/env (environment)"
    );
}

#[test]
fn every_flag_has_a_variable() {
    let values = |name: &str| match name {
        "public-ip" | "iface-can-reach" => "10.0.0.9",
        "store" => "dir:/env",
        "etcd-api" => "v2",
        "metrics-listen" => "127.0.0.1:9",
        "backend-default" => "vxlan",
        "receive-on" => "public",
        "peer-check" => "off",
        "allow-peer" | "forward-extra" => "192.0.2.0/24",
        "socket-filter" => "off",
        "offload" => "off",
        "firewall" => "none",
        "log-format" => "json",
        "etcd-endpoints" => "http://env:1",
        "kube-subnet-mgr" => "false",
        _ => "1",
    };
    for flag in FLAGS.iter().filter(|flag| flag.name != "version") {
        let variable = flag.variable(flag.name);
        let options = options_with(&[], &[(&variable, values(flag.name))]);
        assert_eq!(
            options.origin(flag.name),
            Some(Origin::Environment),
            "{variable}"
        );
    }
    let aliased = options_with(&[], &[("FLANNELD_ETCD_CA_FILE", "/ca")]);
    assert_eq!(
        aliased.store.etcd.ca_file.as_deref(),
        Some(Path::new("/ca"))
    );
    let version = options_with(&[], &[("FLANNELD_VERSION", "true")]);
    assert!(version.notices.is_empty());
}

#[test]
fn a_malformed_variable_is_noted_and_start_up_goes_on() {
    let variables = [
        ("FLANNELD_IP_MASQ", "maybe"),
        ("FLANNELD_IPTABLES_RESYNC", "soon"),
    ];
    let options = options_with(&[], &variables);
    assert!(!options.ip_masq);
    assert_eq!(options.iptables_resync, Duration::from_secs(5));
    assert_eq!(options.origin("ip-masq"), Some(Origin::Default));
    let errors = options
        .notices
        .iter()
        .filter(|notice| notice.level == NoticeLevel::Error);
    assert_eq!(errors.count(), 2, "{:?}", options.notices);
}

#[test]
fn a_variable_that_would_change_what_is_reached_is_refused() {
    let table = [
        ("FLANNELD_PUBLIC_IP", "10.0.0"),
        ("FLANNELD_ETCD_ENDPOINTS", "ftp://a"),
        ("FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "1440"),
        ("UVXLAN_STORE", "redis"),
    ];
    for (variable, value) in table {
        let error = parse_with(&[], &[(variable, value)]).expect_err(variable);
        assert_eq!(error.exit_code(), 2, "{variable}");
        assert!(error.to_string().contains(variable), "{error}");
    }
}

#[test]
fn a_mistyped_variable_is_noted_and_a_strange_one_left_alone() {
    let variables = [
        ("FLANNELD_ETCD_ENDPOINT", "http://a"),
        ("FLANNELD_STORE", "etcd"),
        ("FLANNELD_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("ETCD_ENDPOINT", "http://a"),
    ];
    let options = options_with(&[], &variables);
    let warnings = warnings(&options);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].contains("FLANNELD_ETCD_ENDPOINTS?"),
        "{warnings:?}"
    );
    assert!(warnings[1].contains("UVXLAN_STORE?"), "{warnings:?}");
}
