//! No password appears in the log, even at the finest level of all crates.

mod support;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use uvxlan::subnet::store::Store;
use uvxlan::subnet::store::etcd::EtcdOptions;
use uvxlan::subnet::store::etcd_v2::EtcdV2Store;
use uvxlan::subnet::store::etcd_v3::EtcdStore;

use crate::support::contract::{TTL, written};
use crate::support::etcd::{Etcd, PREFIX};

const USER: &str = "node";
const PASSWORD: &str = "drei-chinesen-42";
const WRONG: &str = "kontrabass-43";

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn enable_auth(etcd: &Etcd) {
    use etcd_client::{Permission, PermissionType};
    let mut auth = etcd.client().await.auth_client();
    auth.user_add("root", "rootpass", None).await.unwrap();
    auth.user_grant_role("root", "root").await.unwrap();
    auth.user_add(USER, PASSWORD, None).await.unwrap();
    auth.role_add("flannel").await.unwrap();
    let all = Permission::new(PermissionType::Readwrite, format!("{PREFIX}/")).with_prefix();
    auth.role_grant_permission("flannel", all).await.unwrap();
    auth.user_grant_role(USER, "flannel").await.unwrap();
    auth.auth_enable().await.unwrap();
}

/// The forms in which the password may appear: plain, as bytes, and in Basic authentication.
fn disguises(password: &str) -> Vec<String> {
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{password}"));
    let numbers: Vec<_> = password.bytes().map(|byte| byte.to_string()).collect();
    let hex: String = password.bytes().map(|byte| format!("{byte:02x}")).collect();
    vec![password.to_owned(), basic, numbers.join(", "), hex]
}

#[tokio::test]
async fn no_level_of_any_crate_shows_a_password() {
    let Some(etcd) = Etcd::start(None).await else {
        return;
    };
    enable_auth(&etcd).await;
    let lines = Lines::default();
    let writer = lines.clone();
    // As in the daemon, including records of the `log` crate.
    tracing_subscriber::registry()
        .with(LevelFilter::TRACE)
        .with(layer().with_ansi(false).with_writer(move || writer.clone()))
        .init();
    let with = |password: &str| EtcdOptions {
        username: Some(USER.into()),
        password: Some(password.into()),
        ..etcd.options()
    };
    for password in [PASSWORD, WRONG] {
        let is_right = password == PASSWORD;
        let v3 = EtcdStore::new(with(password)).unwrap();
        assert_eq!(v3.list().await.is_ok(), is_right);
        if is_right {
            let value = Bytes::from_static(b"{}");
            written(v3.create("10.5.1.0-24", value, TTL).await.unwrap());
            let _ = v3.watch(1);
            assert!(v3.keep_alive().await.unwrap());
        }
        // The v2 API does not know the users of v3: it accepts any.
        let v2 = EtcdV2Store::new(with(password)).unwrap();
        v2.list().await.unwrap();
        tracing::trace!(store = ?v3, options = ?with(password), "said on purpose");
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let log = String::from_utf8_lossy(&lines.0.lock().unwrap()).into_owned();
    for told in [
        "said on purpose",
        " h2::",
        " hyper",
        "uvxlan::subnet::store",
    ] {
        assert!(
            log.contains(told),
            "the log does not mention {told}:\n{log}"
        );
    }
    for password in [PASSWORD, WRONG] {
        for disguise in disguises(password) {
            let line = log.lines().find(|line| line.contains(&disguise));
            assert_eq!(line, None, "{disguise}");
        }
    }
}
