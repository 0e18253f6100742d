//! What an etcd member, or whoever answers in its place, says to `uvxlan doctor`.
#![no_main]

use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use uvxlan::doctor::read_head;

fuzz_target!(|bytes: &[u8]| {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let text = String::from_utf8_lossy(bytes);
    let read = read_head(&text, now);
    let begins = text.starts_with("HTTP/1.");
    assert!(begins || read.is_none(), "no HTTP");
    let Some(answer) = read else { return };
    // What comes behind the head changes nothing.
    let head = text.split("\r\n\r\n").next().unwrap_or_default();
    let with_body = format!("{head}\r\n\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n");
    assert_eq!(read_head(&with_body, now), Some(answer));
    // Clocks that differ as much as the difference between two looks at ours.
    let later = read_head(&text, now + Duration::from_secs(10)).expect("read before");
    assert_eq!(later.status, answer.status);
    assert_eq!(later.skew, answer.skew.map(|skew| skew - 10));
});
