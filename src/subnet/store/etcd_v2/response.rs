//! Parser of responses of etcd's v2 API: pure, from bytes.
//!
//! The format is that of etcd's `Documentation/v2/api.md` and `errorcode.md`, as far as
//! flannel v0.11 reads it (`subnet/etcdv2/registry.go`).

use bytes::Bytes;
use serde::Deserialize;

use super::super::{Record, StoreErrorKind, WatchEvent, cut};

/// A key does not exist.
const KEY_NOT_FOUND: u32 = 100;
/// `prevIndex` did not match.
const COMPARE_FAILED: u32 = 101;
/// A key that was to be created exists.
const NODE_EXISTS: u32 = 105;
/// Events from there on are not kept any more.
const EVENT_INDEX_CLEARED: u32 = 401;

/// The body of an event, a read or an error.
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

/// A parsed response.
#[derive(Debug, PartialEq, Eq)]
pub enum Response {
    /// A key, as it is after the request.
    Key(Key),
    /// A directory: all keys below it.
    Directory(Vec<Record>),
    /// There is no such key.
    NotFound,
    /// The condition of the request does not hold.
    Conflict,
    /// The requested events are no longer kept.
    Cleared,
    /// Any other refusal, as etcd words it.
    Refused(String),
}

/// A key and its metadata.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// The record; its name is the whole key if that is not below the base.
    pub record: Record,
    /// Seconds until it expires.
    pub ttl: Option<i64>,
    /// When it expires, by etcd's clock, to the nanosecond.
    pub expiration: Option<String>,
    /// `set`, `delete`, `expire`, …
    pub action: String,
    /// Whether it is a directory, or not directly below the base.
    pub elsewhere: bool,
}

impl Key {
    pub(super) fn is_deletion(&self) -> bool {
        matches!(
            self.action.as_str(),
            "delete" | "expire" | "compareAndDelete"
        )
    }
}

/// Why bytes are not a usable response of the v2 API.
#[derive(Debug, thiserror::Error)]
pub enum ResponseError {
    /// The server has the v2 API disabled, or never had it.
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
        /// The beginning of the body.
        text: String,
    },
    /// Something else.
    #[error("HTTP {status}, and the body is not a response of etcd: {text}")]
    Unreadable {
        /// HTTP status.
        status: u16,
        /// The beginning of the body.
        text: String,
    },
}

impl ResponseError {
    pub(super) fn kind(&self) -> StoreErrorKind {
        match self {
            Self::Unauthorized { status: 401, .. } => StoreErrorKind::LoginRefused,
            _ => StoreErrorKind::Permanent,
        }
    }
}

/// Parses a response; `base` is the key of the directory of records, without a trailing slash.
///
/// # Errors
/// [`ResponseError`].
pub fn parse(status: u16, body: &[u8], base: &str) -> Result<Response, ResponseError> {
    let text = || {
        let start: String = String::from_utf8_lossy(body).chars().take(120).collect();
        start.trim().escape_debug().to_string()
    };
    let parsed: Option<Body> = serde_json::from_slice(body).ok();
    match (status, parsed) {
        (401 | 403, _) => Err(ResponseError::Unauthorized {
            status,
            text: text(),
        }),
        (_, Some(body)) if body.error_code != 0 => Ok(match body.error_code {
            KEY_NOT_FOUND => Response::NotFound,
            COMPARE_FAILED | NODE_EXISTS => Response::Conflict,
            EVENT_INDEX_CLEARED => Response::Cleared,
            code => Response::Refused(format!("{} ({}), code {code}", body.message, body.cause)),
        }),
        (
            200 | 201,
            Some(Body {
                action,
                node: Some(node),
                ..
            }),
        ) => Ok(found(action, node, base)),
        (404, None) => Err(ResponseError::NoV2),
        _ => Err(ResponseError::Unreadable {
            status,
            text: text(),
        }),
    }
}

fn found(action: String, node: Node, base: &str) -> Response {
    // Events of a directory (its removal) carry its key; a read of it its content.
    if node.dir && action == "get" {
        let mut records = Vec::new();
        collect(node, base, &mut records);
        return Response::Directory(records);
    }
    let elsewhere = node.dir || !is_below(&node.key, base);
    Response::Key(Key {
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

/// The event in a response to a watch; `None` if only a list can tell what happened (a
/// directory was removed).
pub fn event(key: Key) -> Option<WatchEvent> {
    if key.elsewhere {
        return None;
    }
    Some(match key.is_deletion() {
        true => WatchEvent::Delete {
            name: key.record.name,
            revision: key.record.revision,
        },
        false => WatchEvent::Put(key.record),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "/coreos.com/network/subnets";

    fn key(body: &str) -> Key {
        match parse(200, body.as_bytes(), BASE).unwrap() {
            Response::Key(key) => key,
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
        let Response::Directory(records) = parse(200, body.as_bytes(), BASE).unwrap() else {
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
            parse(status, body.as_bytes(), BASE).unwrap()
        };
        assert_eq!(error(404, 100), Response::NotFound);
        assert_eq!(error(412, 101), Response::Conflict);
        assert_eq!(error(412, 105), Response::Conflict);
        assert_eq!(error(400, 401), Response::Cleared);
        assert!(matches!(error(403 + 100, 300), Response::Refused(text) if text.contains("m (c)")));
        let off = parse(404, b"404 page not found\n", BASE).unwrap_err();
        assert!(off.to_string().contains("--enable-v2"), "{off}");
        let login = parse(401, br#"{"message":"Insufficient credentials"}"#, BASE).unwrap_err();
        assert!(login.to_string().contains("Insufficient"), "{login}");
        for body in ["", "{", "[1]", "<html>\n", r#"{"action":"get"}"#] {
            assert!(parse(200, body.as_bytes(), BASE).is_err(), "{body}");
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
