//! Bodies of etcd's v2 API.
#![no_main]

use libfuzzer_sys::fuzz_target;
use uvxlan::subnet::store::WatchEvent;
use uvxlan::subnet::store::etcd_v2::response::{self, Response};

const BASE: &str = "/coreos.com/network/subnets";

fuzz_target!(|input: (u16, &[u8])| {
    let (status, body) = input;
    let Ok(response) = response::parse(status, body, BASE) else {
        return;
    };
    match response {
        Response::Directory(records) => {
            assert!(status < 300);
            assert!(records.iter().all(|record| body.len() > record.name.len()));
        }
        Response::Key(key) => {
            let (elsewhere, name) = (key.elsewhere, key.record.name.clone());
            match response::event(key) {
                // Only what lies below the base is a record.
                Some(WatchEvent::Put(record)) => assert_eq!(record.name, name),
                Some(WatchEvent::Delete { name: gone, .. }) => assert_eq!(gone, name),
                Some(WatchEvent::Resync(_)) => panic!("a response is no list"),
                None => assert!(elsewhere),
            }
        }
        _ => {}
    }
});
