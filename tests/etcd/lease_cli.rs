//! `uvxlan lease` and `uvxlan config`, as a user calls them, on all kinds of stores.

use std::process::{Command, Output};

use crate::support::etcd::{Etcd, PREFIX};

fn uvxlan(store: &[String], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uvxlan"));
    command.env_clear().args(arguments).args(store);
    command.output().unwrap()
}

fn good(store: &[String], arguments: &[&str]) -> String {
    let output = uvxlan(store, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn bad(store: &[String], arguments: &[&str], status: i32) -> String {
    let output = uvxlan(store, arguments);
    assert_eq!(
        output.status.code(),
        Some(status),
        "{arguments:?}: {output:?}"
    );
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

fn a_first_day(store: &[String]) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("network.json");
    let path = file.to_str().unwrap();
    let error = bad(store, &["lease", "list"], 78);
    assert!(error.contains("uvxlan config put FILE"), "{error}");

    std::fs::write(
        &file,
        r#"{"Network":"10.5.0.0/16","SubnetLen":33,"Backend":{"Type":"vxlan"}}"#,
    )
    .unwrap();
    assert!(bad(&[], &["config", "check", path], 78).contains(path));
    bad(store, &["config", "put", path], 78);
    bad(store, &["config", "show"], 78);

    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
    std::fs::write(&file, config).unwrap();
    let summary = "network 10.5.0.0/16, a /24 for each host from 10.5.1.0 to 10.5.255.0, vxlan VNI 1 port 8472\n";
    assert_eq!(good(&[], &["config", "check", path]), summary);
    assert!(good(store, &["config", "put", path]).ends_with(summary));
    assert_eq!(good(store, &["config", "show"]), format!("{config}\n"));

    let reserve = ["lease", "reserve", "10.5.7.0/24", "192.0.2.7"];
    assert_eq!(
        good(store, &reserve),
        "reserved 10.5.7.0/24 for 192.0.2.7\n"
    );
    assert_eq!(
        good(store, &reserve),
        "reserved 10.5.7.0/24 for 192.0.2.7\n"
    );
    let other = ["lease", "reserve", "10.5.7.0/24", "192.0.2.8"];
    assert!(bad(store, &other, 1).contains("lease release 10.5.7.0-24"));
    let odd = ["lease", "reserve", "10.6.7.0/24", "192.0.2.8"];
    assert!(bad(store, &odd, 1).contains("/24 from 10.5.1.0"));
}

fn last_words(store: &[String]) {
    assert_eq!(
        good(store, &["lease", "release", "10.5.7.0/24"]),
        "released 10.5.7.0-24\n"
    );
    let error = bad(store, &["lease", "show", "10.5.7.0/24"], 1);
    assert!(error.contains("uvxlan lease list"), "{error}");
}

#[test]
fn a_directory_is_managed() {
    let dir = tempfile::tempdir().unwrap();
    let store = [format!("--store=dir:{}", dir.path().display())];
    a_first_day(&store);
    let json: serde_json::Value =
        serde_json::from_str(&good(&store, &["lease", "list", "--json"])).unwrap();
    assert_eq!(json[0]["name"], "10.5.7.0-24");
    last_words(&store);
}

#[tokio::test]
async fn etcd_is_managed() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let store = [format!("--etcd-endpoints={}", etcd.url())];
    a_first_day(&store);
    let mut client = etcd.client().await;
    let key = |name: &str| format!("{PREFIX}/subnets/{name}");
    let found = client.get(key("10.5.7.0-24"), None).await.unwrap();
    assert_eq!(found.kvs()[0].lease(), 0, "does not expire");
    let lease = client.lease_grant(600, None).await.unwrap().id();
    let value = r#"{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:09"}}"#;
    let expiring = || Some(etcd_client::PutOptions::new().with_lease(lease));
    client
        .put(key("10.5.9.0-24"), value, expiring())
        .await
        .unwrap();
    client
        .put(key("10.5.10.0-24"), value, expiring())
        .await
        .unwrap();
    client
        .put(key("\u{1b}[31m0.0.0.0-0"), value, expiring())
        .await
        .unwrap();
    assert_eq!(
        good(&store, &["lease", "list"]),
        "SUBNET              PUBLIC IP        VTEP MAC           KIND      STATE\n\
         10.5.7.0/24         192.0.2.7        -                  reserved  ok\n\
         10.5.9.0/24         192.0.2.9        0e:00:00:00:00:09  lease     ok\n\
         10.5.10.0/24        192.0.2.9        0e:00:00:00:00:09  lease     duplicate_address\n\
         \\u{1b}[31m0.0.0.0-0 192.0.2.9        0e:00:00:00:00:09  lease     key\n"
    );
    let shown = good(&store, &["lease", "show", "10.5.10.0/24"]);
    assert!(
        shown.contains(value) && shown.contains("older lease (10.5.9.0-24)"),
        "{shown}"
    );
    last_words(&store);
}

#[tokio::test]
async fn etcd_by_api_v2_is_managed() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let store = [
        format!("--etcd-endpoints={}", etcd.url()),
        "--etcd-api=v2".into(),
    ];
    a_first_day(&store);
    let key = |name: &str| format!("{PREFIX}/subnets/{name}");
    let Some(shown) = etcd.ctl_api("2", &["-o", "extended", "get", &key("10.5.7.0-24")]) else {
        return;
    };
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("TTL: 0\n"), "does not expire: {shown}");
    let value = r#"{"PublicIP":"192.0.2.9","BackendType":"vxlan","BackendData":{"VtepMAC":"0e:00:00:00:00:09"}}"#;
    for name in ["10.5.9.0-24", "10.5.10.0-24"] {
        etcd.ctl_api("2", &["set", "--ttl", "600", &key(name), value]);
    }
    assert_eq!(
        good(&store, &["lease", "list"]),
        "SUBNET              PUBLIC IP        VTEP MAC           KIND      STATE\n\
         10.5.7.0/24         192.0.2.7        -                  reserved  ok\n\
         10.5.9.0/24         192.0.2.9        0e:00:00:00:00:09  lease     ok\n\
         10.5.10.0/24        192.0.2.9        0e:00:00:00:00:09  lease     duplicate_address\n"
    );
    // The lease of a host becomes its reservation, unchanged.
    let reserve = ["lease", "reserve", "10.5.9.0/24", "192.0.2.9"];
    assert_eq!(
        good(&store, &reserve),
        "reserved 10.5.9.0/24 for 192.0.2.9\n"
    );
    let kept = etcd.ctl_api("2", &["-o", "extended", "get", &key("10.5.9.0-24")]);
    let kept = String::from_utf8(kept.unwrap().stdout).unwrap();
    assert!(kept.contains("TTL: 0\n") && kept.contains(value), "{kept}");
    let shown = good(&store, &["lease", "show", "10.5.10.0/24"]);
    assert!(shown.contains("older lease (10.5.9.0-24)"), "{shown}");
    last_words(&store);
    // The other API does not have it, and the error names the one that has.
    let three = [store[0].clone(), "--etcd-api=v3".into()];
    bad(&three, &["lease", "list"], 78);
}

#[test]
fn a_store_that_does_not_exist_is_named() {
    let port = crate::support::etcd::free_port();
    let store = [format!("--etcd-endpoints=http://127.0.0.1:{port}")];
    let error = bad(&store, &["lease", "list"], 69);
    assert!(
        error.contains(&port.to_string()) && error.contains("--etcd-endpoints"),
        "{error}"
    );
    assert!(bad(&["--store=x".into()], &["lease", "list"], 2).contains("dir:PATH"));
}
