//! The directory store.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use uvxlan::subnet::store::dir::DirStore;
use uvxlan::subnet::store::{Store, WatchEvent};

use crate::support::contract::{self, TTL, next, quiet, written};

const NAME: &str = "10.5.1.0-24";

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract_of_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("not/yet/there");
    contract::check(&DirStore::new(&path), &DirStore::new(&path)).await;
    assert_eq!(
        names(&path.join(".tmp")),
        [""; 0],
        "no temporary file is left"
    );
}

#[tokio::test]
async fn files_are_what_a_person_would_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::new(dir.path());
    let name = "10.5.1.0-24&fd00:5:1::-64";
    written(
        store
            .create(name, Bytes::from_static(b"{}"), TTL)
            .await
            .unwrap(),
    );
    assert_eq!(
        std::fs::read(dir.path().join("subnets").join(name)).unwrap(),
        b"{}"
    );

    std::fs::write(dir.path().join("config"), "{\"Network\":\"10.5.0.0/16\"}\n").unwrap();
    let config = store.config().await.unwrap().unwrap();
    assert_eq!(&config[..], b"{\"Network\":\"10.5.0.0/16\"}\n");
}

#[tokio::test]
async fn files_that_are_not_records_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let subnets = dir.path().join("subnets");
    std::fs::create_dir_all(subnets.join("10.5.9.0-24")).unwrap();
    std::fs::write(subnets.join(".10.5.8.0-24.swp"), "x").unwrap();
    std::os::unix::fs::symlink("/dev/zero", subnets.join("10.5.7.0-24")).unwrap();
    std::fs::write(subnets.join("garbage"), "x").unwrap();
    std::fs::write(subnets.join("10.5.6.0-24"), vec![b'x'; 1 << 20]).unwrap();
    let listing = DirStore::new(dir.path()).list().await.unwrap();
    let found: Vec<_> = listing
        .records
        .iter()
        .map(|r| (r.name.as_str(), r.value.len()))
        .collect();
    assert_eq!(
        found,
        [("10.5.6.0-24", 65_537), ("garbage", 1)],
        "long ones are truncated"
    );
}

#[tokio::test]
async fn a_record_lives_as_long_as_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::new(dir.path());
    assert!(!store.keep_alive().await.unwrap());
    written(
        store
            .create(NAME, Bytes::from_static(b"1"), TTL)
            .await
            .unwrap(),
    );
    assert!(store.keep_alive().await.unwrap());
    std::fs::remove_file(dir.path().join("subnets").join(NAME)).unwrap();
    assert!(!store.keep_alive().await.unwrap());
}

#[tokio::test]
async fn a_watch_sees_what_a_person_does() {
    let dir = tempfile::tempdir().unwrap();
    let subnets = dir.path().join("subnets");
    let store = DirStore::new(dir.path());
    let mut events = store.watch(store.list().await.unwrap().revision);
    quiet(&mut events, Duration::from_millis(200)).await;
    std::fs::create_dir(&subnets).unwrap();
    std::fs::write(subnets.join(NAME), "1").unwrap();
    match next(&mut events).await {
        WatchEvent::Put(record) => assert_eq!(record.name, NAME),
        event => panic!("{event:?}"),
    }
    std::fs::rename(subnets.join(NAME), subnets.join("10.5.2.0-24")).unwrap();
    match next(&mut events).await {
        WatchEvent::Delete { name, .. } => assert_eq!(name, NAME),
        event => panic!("{event:?}"),
    }
    match next(&mut events).await {
        WatchEvent::Put(record) => assert_eq!(record.name, "10.5.2.0-24"),
        event => panic!("{event:?}"),
    }
}

#[tokio::test]
async fn a_watch_from_an_old_list_begins_with_a_resync() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::new(dir.path());
    let old = store.list().await.unwrap().revision;
    written(
        store
            .create(NAME, Bytes::from_static(b"1"), TTL)
            .await
            .unwrap(),
    );
    let mut events = store.watch(old);
    match next(&mut events).await {
        WatchEvent::Resync(listing) => assert_eq!(listing, store.list().await.unwrap()),
        event => panic!("{event:?}"),
    }
    quiet(&mut events, Duration::from_millis(300)).await;
}

#[tokio::test]
async fn a_directory_that_vanishes_is_not_empty() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = DirStore::new(&path);
    written(
        store
            .create(NAME, Bytes::from_static(b"1"), TTL)
            .await
            .unwrap(),
    );
    let mut events = store.watch(store.list().await.unwrap().revision);
    quiet(&mut events, Duration::from_millis(300)).await;

    // As if a file system is unmounted.
    std::fs::rename(&path, dir.path().join("away")).unwrap();
    assert!(store.list().await.unwrap_err().is_transient());
    quiet(&mut events, Duration::from_millis(500)).await;

    // And recreated, with another record: a list to be confirmed, without deletions.
    std::fs::create_dir_all(path.join("subnets")).unwrap();
    std::fs::write(path.join("subnets/10.5.2.0-24"), "2").unwrap();
    let wait = Duration::from_secs(15);
    let first = tokio::time::timeout(wait, events.recv())
        .await
        .unwrap()
        .unwrap();
    match first {
        WatchEvent::Resync(listing) => assert_eq!(listing.records[0].name, "10.5.2.0-24"),
        event => panic!("{event:?}"),
    }
    // The watch is on the new directory now.
    std::fs::write(path.join("subnets/10.5.3.0-24"), "3").unwrap();
    match next(&mut events).await {
        WatchEvent::Put(record) => assert_eq!(record.name, "10.5.3.0-24"),
        event => panic!("{event:?}"),
    }
}

#[tokio::test]
async fn a_bare_mount_point_is_not_the_store() {
    // Two file systems; the link leads to the mounted one.
    let (mounted, bare) = (
        tempfile::tempdir_in("/dev/shm"),
        tempfile::tempdir_in("/var/tmp"),
    );
    let (Ok(mounted), Ok(bare)) = (mounted, bare) else {
        crate::support::skipped("no second file system");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mount = |target: &Path| {
        let new = dir.path().join("new");
        std::os::unix::fs::symlink(target, &new).unwrap();
        std::fs::rename(&new, &path).unwrap();
    };
    mount(mounted.path());
    let store = DirStore::new(&path);
    let one = || Bytes::from_static(b"1");
    written(store.create(NAME, one(), TTL).await.unwrap());
    written(store.create("10.5.2.0-24", one(), TTL).await.unwrap());
    let mut events = store.watch(store.list().await.unwrap().revision);
    quiet(&mut events, Duration::from_millis(300)).await;

    // Also if it has an empty `subnets` of its own.
    for made in [false, true] {
        if made {
            std::fs::create_dir(bare.path().join("subnets")).unwrap();
        }
        mount(bare.path());
        assert!(store.list().await.is_err());
        assert!(store.get(NAME).await.is_err(), "not reported as missing");
        assert!(store.keep_alive().await.is_err());
        assert!(store.create(NAME, one(), TTL).await.is_err());
        assert_eq!(
            names(bare.path()),
            [&["subnets"][..], &[]][usize::from(!made)]
        );
        mount(mounted.path());
        assert_eq!(store.list().await.unwrap().records.len(), 2);
        assert!(store.keep_alive().await.unwrap());
    }
    quiet(&mut events, Duration::from_secs(11)).await;
}

#[tokio::test]
async fn several_records_that_vanish_at_once_are_a_list() {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::new(dir.path());
    for third in 1..=4 {
        let name = format!("10.5.{third}.0-24");
        written(
            store
                .create(&name, Bytes::from_static(b"1"), TTL)
                .await
                .unwrap(),
        );
    }
    let mut events = store.watch(store.list().await.unwrap().revision);
    quiet(&mut events, Duration::from_millis(300)).await;
    let remove = |third: u8| {
        let name = format!("subnets/10.5.{third}.0-24");
        std::fs::remove_file(dir.path().join(name)).unwrap();
    };
    remove(1);
    match next(&mut events).await {
        WatchEvent::Delete { name, .. } => assert_eq!(name, NAME),
        event => panic!("{event:?}"),
    }
    // Within the time that a burst of changes may take.
    remove(2);
    remove(3);
    match next(&mut events).await {
        WatchEvent::Resync(listing) => assert_eq!(listing.records.len(), 1),
        event => panic!("{event:?}"),
    }
}
