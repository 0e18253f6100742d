//! The etcd v2 store against a real etcd, and the choice between the APIs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use uvxlan::subnet::key::SubnetKey;
use uvxlan::subnet::lease::{LeaseAttrs, LeaseForm};
use uvxlan::subnet::store::etcd::EtcdOptions;
use uvxlan::subnet::store::etcd_auto::{EtcdApi, EtcdAutoStore};
use uvxlan::subnet::store::etcd_v2::EtcdV2Store;
use uvxlan::subnet::store::{Store, WatchEvent, WriteOutcome};

use crate::support::contract::{self, TTL, next, quiet, written};
use crate::support::etcd::{Etcd, PREFIX, certificates, free_port, until_up};
use crate::support::fleet::{attrs, follow, subnet};

const NAME: &str = "172.20.97.0-24";
/// As flannel v0.11 writes it.
const VALUE: &str = r#"{"PublicIP":"10.211.55.101","BackendType":"vxlan","BackendData":{"VtepMAC":"f6:df:b4:d0:5d:72"}}"#;
const CONFIG: &str = r#"{"Network":"172.20.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn value() -> Bytes {
    Bytes::from_static(VALUE.as_bytes())
}

#[tokio::test]
async fn keeps_the_contract_of_a_store() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    contract::check(&etcd.v2_store(), &etcd.v2_store()).await;
}

#[tokio::test]
async fn etcdctl_sees_what_flannel_v0_11_would_write() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let Some(_) = etcd.ctl_api("2", &["set", &format!("{PREFIX}/config"), CONFIG]) else {
        return;
    };
    let store = etcd.v2_store();
    assert_eq!(store.config().await.unwrap().unwrap(), CONFIG);
    assert_eq!(store.lease_form(), LeaseForm::V011);
    written(store.create(NAME, value(), TTL).await.unwrap());
    let show = |arguments: &[&str]| {
        let output = etcd.ctl_api("2", arguments).unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let key = format!("{PREFIX}/subnets/{NAME}");
    assert_eq!(
        show(&["ls", &format!("{PREFIX}/subnets")]),
        format!("{key}\n")
    );
    assert_eq!(show(&["get", &key]), format!("{VALUE}\n"));
    let extended = show(&["-o", "extended", "get", &key]);
    let ttl = extended
        .lines()
        .find_map(|line| line.strip_prefix("TTL: "))
        .unwrap();
    assert!((50..=60).contains(&ttl.parse::<u64>().unwrap()), "{ttl}");
    // Not in the other store.
    assert_eq!(etcd.store().list().await.unwrap().records, []);
}

#[tokio::test]
async fn a_lease_lives_by_keepalive_and_dies_without() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let (store, other) = (etcd.v2_store(), etcd.v2_store());
    let short = Duration::from_secs(3);
    let revision = written(store.create(NAME, value(), short).await.unwrap());
    let start = store.list().await.unwrap();
    let mut own_events = store.watch(start.revision);
    let mut events = other.watch(start.revision);
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(store.keep_alive().await.unwrap());
    }
    // Its holder sees the revision that it wrote, however often it was renewed.
    let seen = store.get(NAME).await.unwrap().unwrap();
    assert_eq!(seen.revision, revision);
    assert!(other.get(NAME).await.unwrap().unwrap().revision > revision);
    quiet(&mut own_events, Duration::from_millis(300)).await;
    while let Ok(event) = events.try_recv() {
        assert!(matches!(event, WatchEvent::Put(ref record) if record.value == VALUE));
    }
    // A write that is compared with what the holder knows succeeds.
    let again = store.replace(NAME, value(), revision, Some(short)).await;
    let revision = written(again.unwrap());
    match next(&mut events).await {
        WatchEvent::Put(record) => assert_eq!(record.revision, revision),
        event => panic!("{event:?}"),
    }
    match next(&mut events).await {
        WatchEvent::Delete { name, .. } => assert_eq!(name, NAME),
        event => panic!("{event:?}"),
    }
    assert!(!store.keep_alive().await.unwrap(), "expired");
    assert_eq!(other.list().await.unwrap().records, []);
}

#[tokio::test]
async fn a_blind_overwrite_by_flannel_v0_11_is_noticed() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let store = etcd.v2_store();
    let revision = written(store.create(NAME, value(), TTL).await.unwrap());
    let mut events = store.watch(store.list().await.unwrap().revision);
    let theirs = VALUE.replace("101", "102");
    let path = format!("{PREFIX}/subnets/{NAME}");
    if etcd
        .ctl_api("2", &["set", "--ttl", "60", &path, &theirs])
        .is_none()
    {
        return;
    }
    match next(&mut events).await {
        WatchEvent::Put(record) => {
            assert_eq!(record.value, theirs);
            assert_ne!(record.revision, revision);
        }
        event => panic!("{event:?}"),
    }
    assert!(!store.keep_alive().await.unwrap());
    let lost = store.replace(NAME, value(), revision, Some(TTL)).await;
    assert_eq!(lost.unwrap(), WriteOutcome::Conflict);
    assert_eq!(store.get(NAME).await.unwrap().unwrap().value, theirs);
}

#[tokio::test]
async fn a_watch_survives_kill_cleared_history_and_wipe() {
    let Some(mut etcd) = Etcd::start(None).await else {
        return;
    };
    let store = etcd.v2_store();
    written(store.create(NAME, value(), TTL).await.unwrap());
    let start = store.list().await.unwrap();
    // A watch from long before the 1,000 events that etcd keeps.
    for round in 0..1010 {
        store
            .put_config(Bytes::from(format!("{{\"round\":{round}}}")))
            .await
            .unwrap();
    }
    let mut events = store.watch(start.revision - 1);
    match next(&mut events).await {
        WatchEvent::Resync(listing) => assert_eq!(listing.records.len(), 1),
        event => panic!("{event:?}"),
    }
    // Removing a whole directory is not a single event.
    etcd.ctl_api("2", &["rm", "--recursive", &format!("{PREFIX}/subnets")]);
    match next(&mut events).await {
        WatchEvent::Resync(listing) => assert_eq!(listing.records, []),
        event => panic!("{event:?}"),
    }
    etcd.kill();
    assert!(store.list().await.unwrap_err().is_transient());
    assert!(etcd.run().await);
    until_up(&store).await;
    written(store.create(NAME, value(), TTL).await.unwrap());
    match next(&mut events).await {
        WatchEvent::Put(record) => assert_eq!(record.name, NAME),
        event => panic!("{event:?}"),
    }
    etcd.kill();
    etcd.wipe();
    assert!(etcd.run().await);
    until_up(&store).await;
    match next(&mut events).await {
        WatchEvent::Resync(listing) => assert_eq!(listing.records, []),
        event => panic!("{event:?}"),
    }
}

#[tokio::test]
async fn a_replaced_store_is_noticed_past_our_cursor_too() {
    let Some(mut etcd) = Etcd::start(None).await else {
        return;
    };
    let (proxy, options) = etcd.behind_proxy().await;
    let store = EtcdV2Store::new(options).unwrap();
    let direct = EtcdV2Store::new(etcd.options()).unwrap();
    contract::a_replaced_store_is_noticed(&mut etcd, &proxy, &store, &direct).await;
}

/// A server that answers every request alike, and reports whether credentials were sent.
async fn answering(answer: String) -> (u16, tokio::sync::mpsc::UnboundedReceiver<bool>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (told, asked) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = vec![0; 8192];
            let length = stream.read(&mut buffer).await.unwrap_or(0);
            let text = String::from_utf8_lossy(&buffer[..length]).to_lowercase();
            let _ = told.send(text.contains("authorization: basic"));
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (port, asked)
}

fn redirecting_to(place: &str) -> String {
    format!(
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: {place}\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n"
    )
}

#[tokio::test]
async fn a_member_that_points_to_another_is_followed() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let path = format!("{}/v2/keys{PREFIX}/config", etcd.url());
    let (port, mut asked) = answering(redirecting_to(&path)).await;
    let of = |port: u16| EtcdOptions {
        endpoints: vec![format!("http://127.0.0.1:{port}")],
        username: Some("root".into()),
        password: Some("geheim".into()),
        ..etcd.options()
    };
    let store = EtcdV2Store::new(of(port)).unwrap();
    // Method and body are kept.
    store
        .put_config(Bytes::from_static(CONFIG.as_bytes()))
        .await
        .unwrap();
    assert_eq!(etcd.v2_store().config().await.unwrap().unwrap(), CONFIG);
    assert_eq!(store.config().await.unwrap().unwrap(), CONFIG);
    assert_eq!(asked.recv().await, Some(true));

    // Neither in a loop, nor with the password to another host without TLS.
    let (port, _asked) = answering(redirecting_to("/v2/keys/again")).await;
    let error = EtcdV2Store::new(of(port))
        .unwrap()
        .config()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("10 redirections"), "{error}");
    let (port, _asked) = answering(redirecting_to("http://192.0.2.1:2379/v2/keys/x")).await;
    let error = EtcdV2Store::new(of(port))
        .unwrap()
        .config()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("without TLS"), "{error}");
}

#[tokio::test]
async fn hosts_of_both_kinds_form_one_cluster() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let stop = CancellationToken::new();
    let store = etcd.v2_store();
    let theirs = attrs(7, 0).encode_as(LeaseForm::V011).unwrap();
    let name = SubnetKey::from(subnet(7)).to_string();
    written(store.create(&name, theirs.into(), TTL).await.unwrap());
    let mut running = follow(Arc::new(etcd.v2_store()), &stop).await;
    running.changes.recv().await.unwrap();
    assert_eq!(running.view.with(|set| set.peers().count()), 1);
    let records = store.list().await.unwrap().records;
    let ours = records.iter().find(|record| record.name != name).unwrap();
    let text = std::str::from_utf8(&ours.value).unwrap();
    assert!(
        !text.contains("PublicIPv6") && !text.contains("VNI"),
        "{text}"
    );
    assert!(LeaseAttrs::decode(&ours.value).is_ok());
    stop.cancel();
}

#[tokio::test]
async fn tls_and_passwords_work_and_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let tls = certificates(dir.path(), true);
    let Some(etcd) = Etcd::start(Some(tls.clone())).await else {
        return;
    };
    let good = EtcdOptions {
        ca_file: Some(tls.ca.clone()),
        cert_file: Some(tls.client_cert.clone()),
        key_file: Some(tls.client_key.clone()),
        ..etcd.options()
    };
    let store = EtcdV2Store::new(good.clone()).unwrap();
    written(store.create(NAME, value(), TTL).await.unwrap());
    let other = certificates(tempfile::tempdir().unwrap().keep().as_path(), false);
    for (options, expected) in [
        (
            EtcdOptions {
                ca_file: Some(other.ca),
                ..good.clone()
            },
            "certificate",
        ),
        (
            EtcdOptions {
                cert_file: None,
                key_file: None,
                ..good.clone()
            },
            "ertificate",
        ),
    ] {
        let store = EtcdV2Store::new(options).unwrap();
        let error = store.list().await.unwrap_err();
        assert!(!error.is_transient(), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn dead_members_are_passed_over() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let dead = format!("http://127.0.0.1:{}", free_port());
    let options = EtcdOptions {
        endpoints: vec![dead.clone(), etcd.url()],
        ..etcd.options()
    };
    let store = EtcdV2Store::new(options).unwrap();
    written(store.create(NAME, value(), TTL).await.unwrap());
    let alone = EtcdOptions {
        endpoints: vec![dead.clone()],
        ..etcd.options()
    };
    let error = EtcdV2Store::new(alone).unwrap().list().await.unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains(&dead),
        "{error}"
    );
}

fn auto(etcd: &Etcd, api: EtcdApi) -> EtcdAutoStore {
    EtcdAutoStore::new(etcd.options(), api).unwrap()
}

#[tokio::test]
async fn the_store_that_holds_the_config_is_used() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let (v2, v3) = (etcd.v2_store(), etcd.store());
    let nowhere = auto(&etcd, EtcdApi::Auto);
    assert_eq!(nowhere.config().await.unwrap(), None);
    assert!(
        nowhere.describe().contains("v3, v2"),
        "{}",
        nowhere.describe()
    );

    v2.put_config(Bytes::from_static(CONFIG.as_bytes()))
        .await
        .unwrap();
    // The one that found nothing keeps searching.
    assert_eq!(nowhere.config().await.unwrap().unwrap(), CONFIG);
    assert!(nowhere.describe().starts_with("etcd v2"));
    assert_eq!(nowhere.lease_form(), LeaseForm::V011);
    written(nowhere.create(NAME, value(), TTL).await.unwrap());
    assert_eq!(v2.list().await.unwrap().records.len(), 1);
    assert_eq!(v3.list().await.unwrap().records, []);

    // With v3 as the only choice, the error names the API that has it.
    let three = auto(&etcd, EtcdApi::V3);
    assert_eq!(three.config().await.unwrap(), None);
    let why = three.why_no_config().await.unwrap();
    assert!(
        why.contains("v2 store") && why.contains("--etcd-api v2"),
        "{why}"
    );

    v3.put_config(Bytes::from_static(CONFIG.as_bytes()))
        .await
        .unwrap();
    let both = auto(&etcd, EtcdApi::Auto);
    assert_eq!(both.config().await.unwrap().unwrap(), CONFIG);
    assert!(both.describe().starts_with("etcd v3"));
    let two = auto(&etcd, EtcdApi::V2);
    assert_eq!(two.config().await.unwrap().unwrap(), CONFIG);
    assert!(two.describe().starts_with("etcd v2"));
    // An API once chosen is kept, whatever appears in the other later.
    assert!(nowhere.describe().starts_with("etcd v2"));
}

/// A daemon that waits for its config; killed on drop.
struct Waiting {
    child: std::process::Child,
    log: std::path::PathBuf,
}

impl Waiting {
    fn start(etcd: &Etcd, arguments: &[&str]) -> Self {
        let file = |name: &str| etcd.dir().join(name);
        let log = file("daemon.log");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_uvxlan"));
        command
            .args(["run", &format!("--etcd-endpoints={}", etcd.url())])
            .args(arguments)
            .arg(format!("--state-dir={}", file("state").display()))
            .arg(format!("--subnet-file={}", file("subnet.env").display()))
            .arg(format!("--control-socket={}", file("control").display()))
            .stderr(std::fs::File::create(&log).unwrap());
        let mut command = uvxlan::sys::process::dies_with_parent(command);
        let child = command.spawn().unwrap();
        Self { child, log }
    }

    async fn says(&self, words: &str) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(40);
        loop {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            if log.contains(words) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{words:?} in {log}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_daemon_that_waits_says_it_when_the_config_appears_in_the_other_api() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let daemon = Waiting::start(&etcd, &["--etcd-api=v3"]);
    daemon.says("under the prefix used here").await;
    etcd.v2_store()
        .put_config(Bytes::from_static(CONFIG.as_bytes()))
        .await
        .unwrap();
    daemon.says("it lies in etcd's v2 store").await;
}

#[tokio::test]
async fn an_etcd_without_v2_says_so() {
    let Some(etcd) = Etcd::start_with(None, &["--enable-v2=false"]).await else {
        return;
    };
    let error = etcd.v2_store().config().await.unwrap_err();
    assert!(
        !error.is_transient() && error.to_string().contains("--etcd-api v3"),
        "{error}"
    );
    assert_eq!(auto(&etcd, EtcdApi::Auto).config().await.unwrap(), None);
}
