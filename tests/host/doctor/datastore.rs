//! Faults of the datastore: a real etcd, and a member whose clock is wrong.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::Findings;

use crate::support::etcd::{self, Etcd};
use crate::support::nodes::{CONFIG, PREFIX, PROGRAM};

/// The doctor's report here. Only its findings about the datastore are checked, since the rest of
/// this machine may be in any state.
fn examine(url: &str, flags: &[&str]) -> Findings {
    let folder = tempfile::tempdir().unwrap();
    let path = |flag: &str| format!("--{flag}={}", folder.path().join(flag).display());
    let output = Command::new(PROGRAM)
        .args(["doctor", "--json", "--store=etcd"])
        .arg(format!("--etcd-endpoints={url}"))
        .args(["subnet-file", "state-dir", "control-socket"].map(path))
        .args(flags)
        .output()
        .unwrap();
    Findings::of(&output)
}

#[tokio::test]
async fn faults_of_the_config_are_named() {
    let Some(mut etcd) = Etcd::start(None).await else {
        return;
    };
    let url = etcd.url();
    let key = format!("{PREFIX}/config");
    examine(&url, &[]).expect("config", "error", "no network config");
    etcd.ctl_api("2", &["set", &key, CONFIG]).unwrap();
    let found = examine(&url, &["--etcd-api=v3"]);
    found.expect("config", "error", "no network config");
    let cause = found.get("config")["cause"].as_str().unwrap();
    assert!(cause.contains("v2"), "{cause}");
    etcd.ctl(&["put", &key, "{\"Network\": \"10.5.0.0/16\""])
        .unwrap();
    examine(&url, &["--etcd-api=v3"]).expect("config", "error", "the config in");
    etcd.ctl(&["put", &key, CONFIG]).unwrap();
    let found = examine(&url, &["--etcd-api=v3"]);
    for check in ["datastore", "datastore-tls", "clock", "config"] {
        assert_eq!(found.get(check)["status"], "ok", "{found:#?}");
    }

    // In both stores: by default the daemon uses v3; with v2 configured, it finds that.
    for api in ["--etcd-api=auto", "--etcd-api=v2"] {
        assert_eq!(examine(&url, &[api]).get("config")["status"], "ok");
    }
    // In v3 alone, with v2 configured.
    etcd.ctl_api("2", &["rm", &key]).unwrap();
    let found = examine(&url, &["--etcd-api=v2"]);
    found.expect("config", "error", "no network config");
    let cause = found.get("config")["cause"].as_str().unwrap();
    assert!(cause.contains("v3"), "{cause}");
    assert_eq!(
        examine(&url, &["--etcd-api=auto"]).get("config")["status"],
        "ok"
    );

    let closed = format!("{url},http://127.0.0.1:1");
    examine(&closed, &[]).expect("datastore", "warning", "http://127.0.0.1:1");
    etcd.kill();
    examine(&url, &[]).expect("datastore", "error", "refused");
}

#[tokio::test]
async fn faults_of_tls_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let tls = etcd::certificates(folder.path(), true);
    let Some(secure) = Etcd::start(Some(tls.clone())).await else {
        return;
    };
    let flag = |name: &str, path: &std::path::Path| format!("--etcd-{name}={}", path.display());
    let ca = flag("cafile", &tls.ca);
    let (cert, key) = (
        flag("certfile", &tls.client_cert),
        flag("keyfile", &tls.client_key),
    );
    let url = secure.url();
    let whole = examine(&url, &[&ca, &cert, &key]);
    assert_eq!(whole.get("datastore-tls")["status"], "ok", "{whole:#?}");

    examine(&url, &[&ca]).expect("datastore-tls", "error", "requires a client certificate");
    let folder = tempfile::tempdir().unwrap();
    let other = etcd::certificates(folder.path(), true);
    let other_ca = flag("cafile", &other.ca);
    examine(&url, &[&other_ca, &cert, &key]).expect("datastore-tls", "error", "unknown authority");
    let (other, its_key) = (
        flag("certfile", &other.client_cert),
        flag("keyfile", &other.client_key),
    );
    examine(&url, &[&ca, &other, &its_key]).expect("datastore-tls", "error", "refuses our");
    let by_name = url.replace("127.0.0.1", "localhost");
    examine(&by_name, &[&ca, &cert, &key]).expect("datastore-tls", "error", "other names");
    examine(&url, &["--etcd-cafile=/nonexistent/ca.pem"]).expect(
        "datastore-tls",
        "error",
        "/nonexistent/ca.pem",
    );
    // A certificate of ours with the key of another.
    examine(&url, &[&ca, &cert, &its_key]).expect("datastore-tls", "error", "key");
    let without = url.replace("https", "http");
    examine(&without, &[]).expect("datastore", "error", "uses TLS");

    for (from, until, words) in [(2020, 2021, "expired"), (4000, 4001, "not valid yet")] {
        let folder = tempfile::tempdir().unwrap();
        let tls = etcd::certificates_valid(folder.path(), from, until);
        let Some(untimely) = Etcd::start(Some(tls.clone())).await else {
            return;
        };
        let ca = flag("cafile", &tls.ca);
        examine(&untimely.url(), &[&ca]).expect("datastore-tls", "error", words);
    }

    let Some(plain) = Etcd::start(None).await else {
        return;
    };
    let mistaken = plain.url().replace("http", "https");
    examine(&mistaken, &[&ca]).expect("datastore-tls", "error", "does not use TLS");
}

#[test]
fn a_clock_that_is_off_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
            let body = r#"{"etcdserver":"3.4.23","etcdcluster":"3.4.0"}"#;
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
        }
    });
    examine(&url, &["--etcd-api=v2"]).expect("clock", "warning", "behind");
}
