//! What is said about accepted flags, and what must never be said.

use super::*;

#[test]
fn flags_without_effect_are_accepted_with_one_warning_each() {
    let names = [
        "kube-api-url=http://a",
        "kube-annotation-prefix=a",
        "kubeconfig-file=/a",
        "net-config-path=/a",
        "set-node-network-unavailable=true",
        "public-ipv6=::1",
        "vmodule=a=1",
        "log_backtrace_at=a:1",
    ];
    for name in names {
        let argument = format!("--{name}");
        let twice = options(&[&argument, &argument]);
        let warnings = warnings(&twice);
        assert_eq!(warnings.len(), 1, "{name}: {warnings:?}");
        let flag = argument.split('=').next().unwrap();
        assert!(warnings[0].starts_with(flag), "{name}: {warnings:?}");
    }
    for off in [
        "--healthz-port=0",
        "--set-node-network-unavailable=F",
        "--vmodule=",
    ] {
        assert!(options(&[off]).notices.is_empty(), "{off} asks for nothing");
    }
    let by_environment = options_with(&[], &[("FLANNELD_PUBLIC_IPV6", "::1")]);
    assert!(warnings(&by_environment)[0].starts_with("FLANNELD_PUBLIC_IPV6"));
}

#[test]
fn kubernetes_mode_is_refused_as_configuration() {
    for error in [
        error(&["--kube-subnet-mgr"]),
        parse_with(&[], &[("FLANNELD_KUBE_SUBNET_MGR", "true")]).expect_err("refused"),
    ] {
        assert_eq!(error.exit_code(), 78);
        assert!(error.to_string().contains("not supported yet"), "{error}");
    }
    assert!(options(&["--kube-subnet-mgr=false"]).notices.is_empty());
}

#[test]
fn a_password_shows_nowhere() {
    let arguments = [
        "--etcd-password=hunter2",
        "hunter2",
        "--etcd-endpoints=http://u:hunter2@a:1",
    ];
    let mut options = options(&arguments);
    assert_eq!(
        options.store.etcd.password.as_ref().map(Secret::expose),
        Some("hunter2")
    );
    let told = format!("{:?} {:?}", options.settings, options.notices);
    assert!(!told.contains("hunter2"), "{told}");
    options.store.etcd.endpoints.clear();
    assert!(!format!("{options:?}").contains("hunter2"));
    let split = options_with(&[" --etcd-password=x hunter2 --ip-masq"], &[]);
    assert!(
        !format!("{:?}", split.notices).contains("hunter2"),
        "{:?}",
        split.notices
    );
    let refused = error(&["--etcd-endpoints=ftp://u:hunter2@a"]);
    assert!(!refused.to_string().contains("hunter2"), "{refused}");
}

#[test]
fn etcd_flags_beside_a_directory_are_noted() {
    let options = options(&["--store=dir:/a", "--etcd-prefix=/b"]);
    assert!(
        options
            .notices
            .iter()
            .any(|notice| notice.text.starts_with("--etcd-prefix has no"))
    );
}
