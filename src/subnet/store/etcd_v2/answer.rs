//! What etcd's v2 API answers, read: pure, from bytes.
//!
//! Source of the shapes: etcd's `Documentation/v2/api.md` and `errorcode.md`, and what
//! flannel v0.11 reads of them (`subnet/etcdv2/registry.go`).

use bytes::Bytes;
use serde::Deserialize;

use super::super::{Record, WatchEvent, cut};

/// A key does not exist.
const KEY_NOT_FOUND: u32 = 100;
/// `prevIndex` did not match.
const COMPARE_FAILED: u32 = 101;
/// A key that was to be created exists.
const NODE_EXISTS: u32 = 105;
/// Events from there on are not kept any more.
const EVENT_INDEX_CLEARED: u32 = 401;

/// An answer: an event or a read, or an error.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Body {
    action: String,
    node: Option<Node>,
    error_code: u32,
    message: String,
    cause: String,
}

/// A key, or a directory of keys.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Node {
    key: String,
    value: String,
    dir: bool,
    nodes: Vec<Node>,
    modified_index: i64,
    created_index: i64,
    ttl: Option<i64>,
    expiration: Option<String>,
}

/// What an answer says.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// A key, as it is after the request.
    Key(Key),
    /// A directory: all keys below it.
    Directory(Vec<Record>),
    /// There is no such key.
    NotFound,
    /// The key is not as the request demanded.
    Conflict,
    /// The events that were asked for are gone.
    Cleared,
    /// Anything else that etcd refused, in its words.
    Refused(String),
}

/// A key and what else an answer says of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// The record; its name is the whole key where it does not lie below the base.
    pub record: Record,
    /// Seconds until it expires.
    pub ttl: Option<i64>,
    /// When it expires, by etcd's clock, to the nanosecond.
    pub expiration: Option<String>,
    /// `set`, `delete`, `expire`, …
    pub action: String,
    /// Whether it is a directory, or lies elsewhere than directly below the base.
    pub elsewhere: bool,
}

/// Why bytes are no answer of the v2 API.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The server has the v2 API switched off, or never had it.
    #[error(
        "this etcd does not serve API v2 (etcd 3.4 and 3.5 do with --enable-v2=true, 3.6 never): \
         use --etcd-api v3"
    )]
    NoV2,
    /// Credentials are missing or wrong.
    #[error("etcd refuses the request (HTTP {status}): {text}; see --etcd-username")]
    Unauthorized {
        /// HTTP status.
        status: u16,
        /// What the server said.
        text: String,
    },
    /// Something else.
    #[error("HTTP {status} with what is no answer of etcd: {text}")]
    Unreadable {
        /// HTTP status.
        status: u16,
        /// The beginning of the body.
        text: String,
    },
}

/// Reads an answer; `base` is the key of the directory of records, without a slash at its
/// end.
///
/// # Errors
/// [`AnswerError`].
pub fn read(status: u16, body: &[u8], base: &str) -> Result<Answer, AnswerError> {
    let text = || {
        let start: String = String::from_utf8_lossy(body).chars().take(120).collect();
        start.trim().escape_debug().to_string()
    };
    let parsed: Option<Body> = serde_json::from_slice(body).ok();
    match (status, parsed) {
        (401 | 403, _) => Err(AnswerError::Unauthorized {
            status,
            text: text(),
        }),
        (_, Some(body)) if body.error_code != 0 => Ok(match body.error_code {
            KEY_NOT_FOUND => Answer::NotFound,
            COMPARE_FAILED | NODE_EXISTS => Answer::Conflict,
            EVENT_INDEX_CLEARED => Answer::Cleared,
            code => Answer::Refused(format!("{} ({}), code {code}", body.message, body.cause)),
        }),
        (
            200 | 201,
            Some(Body {
                action,
                node: Some(node),
                ..
            }),
        ) => Ok(found(action, node, base)),
        (404, None) => Err(AnswerError::NoV2),
        _ => Err(AnswerError::Unreadable {
            status,
            text: text(),
        }),
    }
}

fn found(action: String, node: Node, base: &str) -> Answer {
    // Events of a directory (its removal) carry its key; a read of it its content.
    if node.dir && action == "get" {
        let mut records = Vec::new();
        collect(node, base, &mut records);
        return Answer::Directory(records);
    }
    let elsewhere = node.dir || !is_below(&node.key, base);
    Answer::Key(Key {
        ttl: node.ttl,
        expiration: node.expiration.clone(),
        record: record(node, base),
        action,
        elsewhere,
    })
}

fn collect(node: Node, base: &str, records: &mut Vec<Record>) {
    if !node.dir {
        records.push(record(node, base));
        return;
    }
    for child in node.nodes {
        collect(child, base, records);
    }
}

fn is_below(key: &str, base: &str) -> bool {
    key.strip_prefix(base)
        .and_then(|rest| rest.strip_prefix('/'))
        .is_some_and(|name| !name.is_empty())
}

fn record(node: Node, base: &str) -> Record {
    let name = node
        .key
        .strip_prefix(base)
        .and_then(|rest| rest.strip_prefix('/'));
    Record {
        name: name.unwrap_or(&node.key).to_owned(),
        value: Bytes::copy_from_slice(cut(node.value.as_bytes())),
        revision: node.modified_index,
        created: node.created_index,
        expires: node.ttl.is_some(),
    }
}

/// The event that a watch's answer is; `None` where only a list can tell what happened (a
/// directory was removed).
pub fn event(key: Key) -> Option<WatchEvent> {
    if key.elsewhere {
        return None;
    }
    Some(match key.action.as_str() {
        "delete" | "expire" | "compareAndDelete" => WatchEvent::Delete {
            name: key.record.name,
            revision: key.record.revision,
        },
        _ => WatchEvent::Put(key.record),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "/coreos.com/network/subnets";

    fn key(body: &str) -> Key {
        match read(200, body.as_bytes(), BASE).unwrap() {
            Answer::Key(key) => key,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_list_is_flat_whatever_it_holds() {
        let body = r#"{"action":"get","node":{"key":"/coreos.com/network/subnets","dir":true,"nodes":[
            {"key":"/coreos.com/network/subnets/10.5.1.0-24","value":"{}","expiration":"2026-11-24T00:00:00Z","ttl":86399,"modifiedIndex":7,"createdIndex":5},
            {"key":"/coreos.com/network/subnets/10.5.2.0-24","value":"r","modifiedIndex":8,"createdIndex":8},
            {"key":"/coreos.com/network/subnets/d","dir":true,"nodes":[
                {"key":"/coreos.com/network/subnets/d/x","value":"y","modifiedIndex":9,"createdIndex":9}]}]}}"#;
        let Answer::Directory(records) = read(200, body.as_bytes(), BASE).unwrap() else {
            panic!("no directory");
        };
        let seen: Vec<_> = records
            .iter()
            .map(|r| (r.name.as_str(), r.revision, r.created, r.expires))
            .collect();
        assert_eq!(
            seen,
            [
                ("10.5.1.0-24", 7, 5, true),
                ("10.5.2.0-24", 8, 8, false),
                ("d/x", 9, 9, false)
            ]
        );
    }

    #[test]
    fn errors_are_told_apart() {
        let error = |status, code| {
            let body = format!(r#"{{"errorCode":{code},"message":"m","cause":"c","index":12}}"#);
            read(status, body.as_bytes(), BASE).unwrap()
        };
        assert_eq!(error(404, 100), Answer::NotFound);
        assert_eq!(error(412, 101), Answer::Conflict);
        assert_eq!(error(412, 105), Answer::Conflict);
        assert_eq!(error(400, 401), Answer::Cleared);
        assert!(matches!(error(403 + 100, 300), Answer::Refused(text) if text.contains("m (c)")));
        let off = read(404, b"404 page not found\n", BASE).unwrap_err();
        assert!(off.to_string().contains("--enable-v2"), "{off}");
        let login = read(401, br#"{"message":"Insufficient credentials"}"#, BASE).unwrap_err();
        assert!(login.to_string().contains("Insufficient"), "{login}");
        for body in ["", "{", "[1]", "<html>\n", r#"{"action":"get"}"#] {
            assert!(read(200, body.as_bytes(), BASE).is_err(), "{body}");
        }
    }

    #[test]
    fn events_become_puts_and_deletes() {
        let of = |action: &str, name: &str| {
            event(key(&format!(
                r#"{{"action":"{action}","node":{{"key":"{BASE}/{name}","value":"v","modifiedIndex":3,"createdIndex":2}},"prevNode":{{}}}}"#
            )))
        };
        for action in ["set", "create", "update", "compareAndSwap"] {
            assert!(
                matches!(of(action, "10.5.1.0-24"), Some(WatchEvent::Put(r)) if r.name == "10.5.1.0-24")
            );
        }
        for action in ["delete", "expire", "compareAndDelete"] {
            assert!(
                matches!(of(action, "10.5.1.0-24"), Some(WatchEvent::Delete { name, revision: 3 }) if name == "10.5.1.0-24")
            );
        }
        let all = key(&format!(
            r#"{{"action":"delete","node":{{"key":"{BASE}","dir":true,"modifiedIndex":3,"createdIndex":2}}}}"#
        ));
        assert_eq!(event(all), None, "only a list can tell what went with it");
    }
}
