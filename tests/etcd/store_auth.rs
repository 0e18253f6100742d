//! Users, passwords and tokens of a real etcd.

use std::io::{Read, Write};
use std::time::Duration;

use uvxlan::subnet::store::etcd::EtcdOptions;
use uvxlan::subnet::store::etcd_v2::EtcdV2Store;
use uvxlan::subnet::store::etcd_v3::EtcdStore;
use uvxlan::subnet::store::{Store, WatchEvent};

use crate::support::contract::{self, TTL, next, written};
use crate::support::etcd::{Etcd, PREFIX};

const NAME: &str = "10.5.1.0-24";

fn value() -> bytes::Bytes {
    bytes::Bytes::from_static(b"{}")
}

/// Number of logins, by etcd's own count.
fn logins(etcd: &Etcd) -> u64 {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", etcd.port())).unwrap();
    let request = "GET /metrics HTTP/1.0\r\nHost: etcd\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.contains("grpc_server_started_total"), "{text}");
    let of_login = |line: &&str| {
        line.starts_with("grpc_server_started_total") && line.contains("\"Authenticate\"")
    };
    let line = text.lines().find(of_login);
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

/// Enables auth with `root` and a `node` that has the rights of the module docs.
async fn enable_auth(client: &etcd_client::Client) {
    use etcd_client::{Permission, PermissionType};
    let mut auth = client.auth_client();
    auth.user_add("root", "rootpass", None).await.unwrap();
    auth.user_grant_role("root", "root").await.unwrap();
    auth.user_add("node", "geheim", None).await.unwrap();
    auth.role_add("flannel").await.unwrap();
    let config = format!("{PREFIX}/config");
    auth.role_grant_permission("flannel", Permission::read(config))
        .await
        .unwrap();
    let subnets = Permission::new(PermissionType::Readwrite, format!("{PREFIX}/subnets/"));
    auth.role_grant_permission("flannel", subnets.with_prefix())
        .await
        .unwrap();
    auth.user_grant_role("node", "flannel").await.unwrap();
    auth.auth_enable().await.unwrap();
}

fn as_node(etcd: &Etcd, password: &str) -> EtcdStore {
    EtcdStore::new(EtcdOptions {
        username: Some("node".into()),
        password: Some(password.into()),
        ..etcd.options()
    })
    .unwrap()
}

#[tokio::test]
async fn a_user_with_the_documented_rights_can_do_all() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let store = as_node(&etcd, "geheim");
    let other = as_node(&etcd, "geheim");
    // Auth is still off: needless credentials are not an error.
    assert_eq!(store.config().await.unwrap(), None);
    let client = etcd.client().await;
    enable_auth(&client).await;
    // Now the connections without a login have to log in.
    contract::check(&store, &other).await;
    assert!(store.keep_alive().await.unwrap());

    let nobody = etcd.store().list().await.unwrap_err();
    assert!(!nobody.is_transient(), "{nobody}");
}

#[tokio::test]
async fn a_changed_auth_store_fails_no_call() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    let client = etcd.client().await;
    enable_auth(&client).await;
    let store = as_node(&etcd, "geheim");
    written(store.create(NAME, value(), TTL).await.unwrap());
    let mut events = store.watch(store.list().await.unwrap().revision);
    let options = etcd_client::ConnectOptions::new().with_user("root", "rootpass");
    let root = etcd_client::Client::connect([etcd.url()], Some(options))
        .await
        .unwrap();
    for round in 0..3 {
        // Invalidates every token ("revision of auth store is old").
        root.auth_client()
            .user_add(format!("user{round}"), "x", None)
            .await
            .unwrap();
        written(
            store
                .create(&format!("10.6.{round}.0-24"), value(), TTL)
                .await
                .unwrap(),
        );
        assert!(store.keep_alive().await.unwrap());
        assert!(matches!(next(&mut events).await, WatchEvent::Put(_)));
    }
}

#[tokio::test]
async fn a_wrong_password_is_final_and_not_shown() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    enable_auth(&etcd.client().await).await;
    let store = as_node(&etcd, "verraten");
    let error = store.list().await.unwrap_err();
    let text = format!("{error} {error:?} {store:?} {}", store.describe());
    assert!(!error.is_transient(), "{text}");
    assert!(text.contains("authentication failed"), "{text}");
    assert!(!text.contains("verraten"), "{text}");
}

#[tokio::test]
async fn a_wrong_password_is_tried_once_in_30_seconds() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    enable_auth(&etcd.client().await).await;
    let store = as_node(&etcd, "verraten");
    let before = logins(&etcd);
    // All requests of a daemon, concurrently and repeatedly, for some seconds.
    let mut events = store.watch(1);
    for _ in 0..20 {
        assert!(store.list().await.is_err());
        assert!(store.get(NAME).await.is_err());
        let error = store.create(NAME, value(), TTL).await.unwrap_err();
        assert!(
            error.to_string().contains("authentication failed"),
            "{error}"
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(events.try_recv().is_err());
    assert_eq!(logins(&etcd) - before, 1);
    // A correct one is neither delayed by that nor counted.
    as_node(&etcd, "geheim").list().await.unwrap();
    assert_eq!(logins(&etcd) - before, 2);
}

#[tokio::test]
async fn a_wrong_password_of_api_v2_is_tried_once_too() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    if etcd
        .ctl_api("2", &["user", "add", "root:rootpass"])
        .is_none()
    {
        return;
    }
    etcd.ctl_api("2", &["auth", "enable"]);
    let login = |password: &str| EtcdOptions {
        username: Some("root".into()),
        password: Some(password.into()),
        ..etcd.options()
    };
    let right = EtcdV2Store::new(login("rootpass")).unwrap();
    written(right.create(NAME, value(), TTL).await.unwrap());
    let refusals = || etcd.log().matches("incorrect password").count();
    let before = refusals();
    let wrong = EtcdV2Store::new(login("verraten")).unwrap();
    let mut events = wrong.watch(1);
    for _ in 0..20 {
        let error = wrong.list().await.unwrap_err();
        assert!(!error.is_transient(), "{error}");
        assert!(error.to_string().contains("401"), "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(events.try_recv().is_err());
    assert_eq!(refusals() - before, 1, "{}", etcd.log());
    assert!(right.keep_alive().await.unwrap());
}
