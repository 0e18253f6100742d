//! `uvxlan report`: what support asks for first, without secrets.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::{doctor, lab};

use crate::support::need;
use crate::support::nodes::{PROGRAM, possible};

#[test]
fn the_report_has_the_findings_and_no_password() {
    need!(possible(&["ip", "iptables"]));
    let lab = lab();
    let file = lab.store.folder.path().join("report.txt");
    let run = |arguments: &[&str]| {
        let flags = doctor(&lab.a, arguments);
        let mut command = Command::new(PROGRAM);
        command
            .arg("report")
            .args(
                flags
                    .iter()
                    .filter(|flag| flag.starts_with("--") && *flag != "--json"),
            )
            .env("ETCDCTL_USER", "root:hunter2")
            .arg(&file);
        let output = lab.a.host.namespace().command(command).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        std::fs::read_to_string(&file).unwrap()
    };
    let store = lab.store.flag();
    let text = run(&[&store]);
    let subnet = lab.a.env.unwrap().subnet.to_string();
    for part in [
        "== findings ==",
        "flannel.1",
        "ip_forward",
        subnet.as_str(),
        "FLANNEL-FWD",
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let text = run(&[
        "--store=etcd",
        "--etcd-endpoints=http://root:hunter2@127.0.0.1:1",
        "--etcd-username=root",
        "--etcd-password=hunter2",
        "--insecure-etcd",
    ]);
    assert!(text.contains("127.0.0.1:1"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");

    // Another backend's config and lease, with the keys that flannel keeps there.
    let store = lab.store.path();
    let keys =
        r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "ipsec", "PSK": "hunter2hunter2"}}"#;
    std::fs::write(store.join("config"), keys).unwrap();
    let foreign = r#"{"PublicIP": "192.0.2.77", "BackendType": "wireguard", "BackendData": {"PrivateKey": "hunter2"}}"#;
    std::fs::write(store.join("subnets/10.5.249.0-24"), foreign).unwrap();
    let text = run(&[&format!("--store=dir:{}", store.display())]);
    for part in [
        r#""PSK":"...","Type":"ipsec""#,
        r#"10.5.249.0-24: {"BackendData":{"PrivateKey":"..."},"BackendType":"wireguard","PublicIP":"192.0.2.77"}"#,
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}
