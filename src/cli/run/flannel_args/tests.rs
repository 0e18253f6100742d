use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::cli::run::flags::FLAGS;
use crate::daemon::options::{LogFormat, NoticeLevel, Origin, ReceiveOn};
use crate::subnet::store::Secret;

mod environment;
mod notices;

fn parse_with(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Invocation, ArgsError> {
    parse(
        arguments.iter().map(OsString::from),
        variables
            .iter()
            .map(|(name, value)| (name.into(), value.into())),
    )
}

fn options_with(arguments: &[&str], variables: &[(&str, &str)]) -> RunOptions {
    match parse_with(arguments, variables) {
        Ok(Invocation::Run(options)) => *options,
        other => panic!("{arguments:?} {variables:?}: {other:?}"),
    }
}

fn options(arguments: &[&str]) -> RunOptions {
    options_with(arguments, &[])
}

fn error(arguments: &[&str]) -> ArgsError {
    match parse_with(arguments, &[]) {
        Err(error) => error,
        other => panic!("{arguments:?}: {other:?}"),
    }
}

fn warnings(options: &RunOptions) -> Vec<&str> {
    let warnings = options
        .notices
        .iter()
        .filter(|notice| notice.level >= NoticeLevel::Warn);
    warnings.map(|notice| notice.text.as_str()).collect()
}

/// The flag table of the newest flannel and of v0.11.0 (their `main.go`), with defaults.
const FLANNEL_FLAGS: &[(&str, &str)] = &[
    (
        "etcd-endpoints",
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
    ),
    ("etcd-prefix", "/coreos.com/network"),
    ("etcd-keyfile", ""),
    ("etcd-certfile", ""),
    ("etcd-cafile", ""),
    ("etcd-username", ""),
    ("etcd-password", ""),
    ("iface", ""),
    ("iface-regex", ""),
    ("iface-can-reach", ""),
    ("subnet-file", "/run/flannel/subnet.env"),
    ("public-ip", ""),
    ("public-ipv6", ""),
    ("subnet-lease-renew-margin", "60"),
    ("ip-masq", "false"),
    ("ip-masq-fully-random-disable", "false"),
    ("kube-subnet-mgr", "false"),
    ("kube-api-url", ""),
    ("kube-annotation-prefix", "flannel.alpha.coreos.com"),
    ("kubeconfig-file", ""),
    ("healthz-ip", "0.0.0.0"),
    ("healthz-port", "0"),
    ("iptables-resync", "5"),
    ("iptables-forward-rules", "true"),
    ("ip-blackhole-route", "false"),
    ("net-config-path", "/etc/kube-flannel/net-conf.json"),
    ("set-node-network-unavailable", "true"),
    ("v", "0"),
    ("vmodule", ""),
    ("log_backtrace_at", ""),
];

#[test]
fn every_flag_of_flannel_is_accepted_with_flannels_default() {
    let defaults = options(&[]);
    for &(name, default) in FLANNEL_FLAGS {
        let setting = defaults
            .settings
            .iter()
            .find(|setting| setting.name == name);
        let setting = setting.unwrap_or_else(|| panic!("no flag {name}"));
        assert_eq!(
            (setting.value.as_str(), setting.origin),
            (default, Origin::Default),
            "{name}"
        );

        let value = if default.is_empty() && name.contains("-ip") {
            "10.0.0.1"
        } else {
            default
        };
        let value = if name == "iface-can-reach" {
            "10.0.0.1"
        } else {
            value
        };
        let given = options(&[&format!("--{name}={value}")]);
        assert_eq!(given.origin(name), Some(Origin::CommandLine), "{name}");
    }
    assert!(defaults.notices.is_empty(), "{:?}", defaults.notices);
    assert_eq!(parse_with(&["--version"], &[]), Ok(Invocation::Version));
}

#[test]
fn the_tables_defaults_are_those_of_run_options() {
    for flag in FLAGS.iter().filter(|flag| !flag.default.is_empty()) {
        let mut options = RunOptions::default();
        assert_eq!(
            (flag.set)(&mut options, flag.default),
            Ok(()),
            "{}",
            flag.name
        );
        assert_eq!(options, RunOptions::default(), "{}", flag.name);
    }
}

#[test]
fn all_of_gos_spellings_of_a_value_are_one() {
    let spellings: [&[&str]; 5] = [
        &["-etcd-prefix", "/a"],
        &["--etcd-prefix", "/a"],
        &["-etcd-prefix=/a"],
        &["--etcd-prefix=/a"],
        &["--etcd-prefix=/first", "-etcd-prefix=/a"],
    ];
    for spelling in spellings {
        assert_eq!(options(spelling).store.etcd.prefix, "/a", "{spelling:?}");
    }
}

#[test]
fn booleans_are_gos_and_never_take_the_next_word() {
    let table = [
        ("--ip-masq", true),
        ("-ip-masq", true),
        ("--ip-masq=1", true),
        ("--ip-masq=t", true),
        ("--ip-masq=T", true),
        ("--ip-masq=true", true),
        ("--ip-masq=TRUE", true),
        ("-ip-masq=True", true),
        ("--ip-masq=0", false),
        ("--ip-masq=f", false),
        ("--ip-masq=F", false),
        ("--ip-masq=false", false),
        ("--ip-masq=FALSE", false),
        ("-ip-masq=False", false),
    ];
    for (argument, value) in table {
        assert_eq!(options(&[argument]).ip_masq, value, "{argument}");
    }
    let followed = options(&["--ip-masq", "false", "--etcd-prefix=/a"]);
    assert!(followed.ip_masq);
    assert_eq!(followed.store.etcd.prefix, "/a");
    let warnings = warnings(&followed);
    assert!(warnings[0].contains("--ip-masq=false"), "{warnings:?}");
    assert_eq!(error(&["--ip-masq=yes"]).exit_code(), 2);
    assert_eq!(error(&["--ip-masq="]).exit_code(), 2);
}

#[test]
fn values_reach_their_fields() {
    let all = options(&[
        "--etcd-endpoints=https://a:2379, https://b:2379",
        "--etcd-cafile=/ca",
        "--etcd-certfile=/cert",
        "--etcd-keyfile=/key",
        "--etcd-username=user",
        "--etcd-password=pass word ",
        "--iface=eth0",
        "--iface",
        "10.0.0.7",
        "--iface-regex=^eth[01]$",
        "--iface-regex=wlan.*",
        "--iface-can-reach=192.0.2.9",
        "--public-ip=192.0.2.1",
        "--public-ipv6=2001:db8::2",
        "--subnet-file=/tmp/subnet.env",
        "--subnet-lease-renew-margin=0x10",
        "--ip-masq-fully-random-disable",
        "--iptables-resync=7",
        "--iptables-forward-rules=false",
        "--ip-blackhole-route",
        "--healthz-ip=127.0.0.1",
        "--healthz-port=65535",
        "-v",
        "4",
    ]);
    assert_eq!(
        all.store.etcd.endpoints,
        ["https://a:2379", "https://b:2379"]
    );
    assert_eq!(all.store.etcd.ca_file.as_deref(), Some(Path::new("/ca")));
    assert_eq!(
        all.store.etcd.cert_file.as_deref(),
        Some(Path::new("/cert"))
    );
    assert_eq!(all.store.etcd.key_file.as_deref(), Some(Path::new("/key")));
    assert_eq!(all.store.etcd.username.as_deref(), Some("user"));
    assert_eq!(all.store.etcd.password, Some(Secret::from("pass word ")));
    assert_eq!(all.iface, ["eth0", "10.0.0.7"]);
    assert_eq!(all.iface_regex, ["^eth[01]$", "wlan.*"]);
    assert_eq!(all.iface_can_reach, Some("192.0.2.9".parse().unwrap()));
    assert_eq!(all.public_ip, Some("192.0.2.1".parse().unwrap()));
    assert_eq!(all.public_ipv6.as_deref(), Some("2001:db8::2"));
    assert_eq!(all.subnet_file, Path::new("/tmp/subnet.env"));
    assert_eq!(all.renew_margin, Duration::from_secs(16 * 60));
    assert!(all.ip_masq_fully_random_disable);
    assert_eq!(all.iptables_resync, Duration::from_secs(7));
    assert!(!all.iptables_forward_rules);
    assert!(all.ip_blackhole_route);
    assert_eq!(all.healthz_ip, "127.0.0.1");
    assert_eq!(all.healthz_port, 65535);
    assert_eq!(all.verbosity, 4);
}

#[test]
fn our_own_values_reach_their_fields() {
    let ours = options(&[
        "--store=dir:/mnt/leases",
        "--fail-fast",
        "--state-dir=/tmp/state",
        "--control-socket=/tmp/sock",
        "--log-format=json",
        "--backend-default=vxlan",
        "--workers=3",
        "--keep-device",
        "--receive-on=public",
        "--offload=auto,-send",
        "--lease-ttl=9",
    ]);
    assert_eq!(ours.store.directory, Some("/mnt/leases".into()));
    assert!(ours.fail_fast && ours.keep_device);
    assert_eq!(ours.state_dir, Path::new("/tmp/state"));
    assert_eq!(ours.control_socket, Path::new("/tmp/sock"));
    assert_eq!(ours.log_format, LogFormat::Json);
    assert_eq!(ours.backend_default.as_deref(), Some("vxlan"));
    assert_eq!(ours.workers.map(usize::from), Some(3));
    assert_eq!(ours.receive_on, ReceiveOn::Public);
    assert_eq!(ours.tuning.offloads.to_string(), "read,receive,write");
    assert_eq!(ours.lease_ttl, Duration::from_secs(9));
    assert!(warnings(&ours).is_empty());
}

#[test]
fn verbosity_becomes_a_level() {
    let table = [
        ("-3", tracing::Level::INFO),
        ("0", tracing::Level::INFO),
        ("1", tracing::Level::DEBUG),
        ("3", tracing::Level::DEBUG),
        ("10", tracing::Level::TRACE),
    ];
    for (number, level) in table {
        assert_eq!(options(&["-v", number]).log_level(), level, "-v {number}");
    }
}

/// What systemd makes of `flanneld --ip-masq ${FLANNEL_OPTIONS}` with the options in an
/// environment file, lines joined at backslashes.
const SYSTEMD_ARGUMENT: &str = " --etcd-endpoints=https://10.211.55.100:2379,\
    https://10.211.55.101:2379,https://10.211.55.102:2379 --etcd-ca-file=/opt/etcd/ssl/ca.pem \
    --etcd-cert-file=/opt/etcd/ssl/server.pem --etcd-key-file=/opt/etcd/ssl/server-key.pem ";

#[test]
fn options_in_one_argument_with_a_leading_blank_are_accepted() {
    for arguments in [
        &["--ip-masq", SYSTEMD_ARGUMENT][..],
        &[SYSTEMD_ARGUMENT, "--ip-masq"],
    ] {
        let seed = options(arguments);
        assert_eq!(
            seed.store.etcd.endpoints,
            [
                "https://10.211.55.100:2379",
                "https://10.211.55.101:2379",
                "https://10.211.55.102:2379"
            ]
        );
        assert_eq!(
            seed.store.etcd.ca_file.as_deref(),
            Some(Path::new("/opt/etcd/ssl/ca.pem"))
        );
        assert_eq!(
            seed.store.etcd.cert_file.as_deref(),
            Some(Path::new("/opt/etcd/ssl/server.pem"))
        );
        assert_eq!(
            seed.store.etcd.key_file.as_deref(),
            Some(Path::new("/opt/etcd/ssl/server-key.pem"))
        );
        assert!(seed.ip_masq);

        let about_splitting = seed
            .notices
            .iter()
            .filter(|notice| notice.text.starts_with("split one argument"));
        assert_eq!(about_splitting.count(), 1);
        for alias in ["--etcd-ca-file", "--etcd-cert-file", "--etcd-key-file"] {
            let noted = format!("read {alias} as ");
            let matching = seed
                .notices
                .iter()
                .filter(|notice| notice.text.starts_with(&noted));
            assert_eq!(matching.count(), 1, "{alias}");
        }
        assert!(warnings(&seed).is_empty(), "{:?}", seed.notices);
    }
}

#[test]
fn blanks_at_the_edges_do_no_harm() {
    let only = options(&[" --etcd-prefix=/a "]);
    assert_eq!(only.store.etcd.prefix, "/a");
    assert_eq!(only.notices.len(), 1);
    let empty = options(&["", "  ", "--ip-masq=false"]);
    assert!(empty.notices.is_empty(), "{:?}", empty.notices);
    let split = options(&["--iface eth0 -ip-masq=false --iface-regex 'a b'"]);
    assert_eq!(
        (split.iface, split.iface_regex),
        (vec!["eth0".into()], vec!["a b".into()])
    );
    let quoted = options(&[" --ip-masq=false --iface='a --b' "]);
    assert_eq!(quoted.iface, ["a --b"], "split once only");
}

#[test]
fn a_value_after_a_flag_is_never_split() {
    let options = options(&["--etcd-password", " --etcd-prefix=/a --ip-masq "]);
    assert_eq!(
        options.store.etcd.password,
        Some(Secret::from(" --etcd-prefix=/a --ip-masq "))
    );
    assert_eq!(options.store.etcd.prefix, "/coreos.com/network");
    assert!(!options.ip_masq);
}

#[test]
fn words_that_are_not_options_are_ignored_and_noted() {
    let options = options(&["word", "-", "--etcd-prefix=/a", "--", "--unknown", "more"]);
    assert_eq!(options.store.etcd.prefix, "/a");
    let warnings = warnings(&options);
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings[0].contains("\"word\""));
    assert!(warnings[2].contains("2 argument(s) after --"));
}

#[test]
fn an_option_taken_as_a_value_is_noted() {
    let options = options(&["--iface", "--ip-masq"]);
    assert_eq!(options.iface, ["--ip-masq"]);
    assert!(!options.ip_masq);
    assert_eq!(warnings(&options).len(), 1);
}

#[test]
fn unknown_flags_name_the_nearest() {
    let table = [
        ("--etcd-endpoint=http://a", Some("etcd-endpoints")),
        ("-etcd-ca", Some("etcd-cafile")),
        ("--endpoints", Some("etcd-endpoints")),
        ("--interface=eth0", Some("iface")),
        ("--ip-masque", Some("ip-masq")),
        ("--etcd-key-files=x", Some("etcd-keyfile")),
        ("--qqqqqqqqqqqq", None),
    ];
    for (argument, expected) in table {
        match error(&[argument]) {
            ArgsError::UnknownFlag { nearest, .. } => assert_eq!(nearest, expected, "{argument}"),
            other => panic!("{argument}: {other}"),
        }
    }
    let unknown = error(&["--etcd-endpoint=http://a"]);
    assert_eq!(unknown.exit_code(), 2);
    assert_eq!(
        unknown.to_string(),
        "unknown flag --etcd-endpoint; did you mean --etcd-endpoints?"
    );
}

#[test]
fn bad_values_are_refused_with_what_was_expected() {
    let table: [(&[&str], &str); 19] = [
        (&["--public-ip=host"], "an IPv4 address"),
        (&["--public-ip=::1"], "an IPv4 address"),
        (&["--iface-can-reach=host"], "an IPv4 address"),
        (&["--iface-can-reach=2001:db8::1"], "an IPv4 address"),
        (&["--subnet-lease-renew-margin=0"], "from 1 to 1439"),
        (&["--subnet-lease-renew-margin=1440"], "from 1 to 1439"),
        (&["--subnet-lease-renew-margin=1h"], "from 1 to 1439"),
        (&["--subnet-lease-renew-margin="], "from 1 to 1439"),
        (&["--healthz-port=65536"], "from 0 to 65535"),
        (&["--workers=0"], "from 1 to 256"),
        (&["-v=99999999999999999999"], "a whole number"),
        (&["--etcd-endpoints=,"], "a comma list of URLs"),
        (&["--etcd-endpoints=http://a b"], "a comma list of URLs"),
        (&["--etcd-endpoints=http://"], "a comma list of URLs"),
        (&["--etcd-prefix="], "a key prefix"),
        (&["--store=dir:"], "dir:PATH"),
        (&["--log-format=xml"], "text or json"),
        (&["--receive-on=eth0"], "any or public"),
        (&["--offload=gso"], "read, send, receive and write"),
    ];
    for (arguments, expected) in table {
        let error = error(arguments);
        assert_eq!(error.exit_code(), 2, "{arguments:?}");
        assert!(
            error.to_string().contains(expected),
            "{arguments:?}: {error}"
        );
    }
    for margin in ["1", "1439"] {
        options(&["--subnet-lease-renew-margin", margin]);
    }
    assert_eq!(
        error(&["--iface"]),
        ArgsError::MissingValue {
            flag: "--iface".into()
        }
    );
    for argument in ["---iface=x", "--=x", "-=x"] {
        assert!(
            matches!(error(&[argument]), ArgsError::BadSyntax { .. }),
            "{argument}"
        );
    }
}

#[test]
fn an_argument_that_is_not_utf8_is_refused_with_its_place() {
    use std::os::unix::ffi::OsStringExt;
    let arguments = ["--ip-masq".into(), OsString::from_vec(vec![b'-', 0xff])];
    assert_eq!(
        parse(arguments, []),
        Err(ArgsError::NotUnicode { position: 2 })
    );
    let variable = ("FLANNELD_IFACE".into(), OsString::from_vec(vec![0xff]));
    match parse([], [variable]) {
        Ok(Invocation::Run(options)) => assert!(warnings(&options)[0].contains("FLANNELD_IFACE")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn help_and_version_are_asked_for_as_in_go() {
    let table = [
        (&["-h"][..], Invocation::ShortHelp),
        (&["--h"], Invocation::ShortHelp),
        (&["-help"], Invocation::LongHelp),
        (&["--ip-masq", "--help", "--unknown"], Invocation::LongHelp),
        (&["-version"], Invocation::Version),
        (&["--version=true", "--ip-masq"], Invocation::Version),
        (&[" --ip-masq --version"], Invocation::Version),
    ];
    for (arguments, invocation) in table {
        assert_eq!(parse_with(arguments, &[]), Ok(invocation), "{arguments:?}");
    }
    options(&["--version=false"]);
}

fn some_word() -> impl Strategy<Value = String> {
    let names: Vec<&str> = FLAGS.iter().map(|flag| flag.name).collect();
    let name = proptest::sample::select(names);
    prop_oneof![
        any::<String>(),
        "[-= \"'a-z0-9,:/]{0,24}",
        (name, "[ -]{0,3}", "=?[ -~]{0,12}")
            .prop_map(|(name, dashes, value)| format!("{dashes}{name}{value}")),
    ]
}

proptest! {
    #[test]
    fn no_command_line_and_no_environment_panics(
        arguments in prop::collection::vec(some_word(), 0..8),
        values in prop::collection::vec((0..FLAGS.len(), any::<String>()), 0..4),
    ) {
        let environment = values.into_iter().filter_map(|(index, value)| {
            let flag = FLAGS.get(index)?;
            Some((flag.variable(flag.name).into(), value.into()))
        });
        let result = parse(arguments.into_iter().map(OsString::from), environment);
        if let Err(error) = result {
            prop_assert!(matches!(error.exit_code(), 2 | 78));
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
