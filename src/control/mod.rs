//! The control protocol: one line of JSON each way over a unix socket, versioned. `uvxlan status`,
//! `trace`, `top` and `capture`, the metrics page and other programs share these types.
#![forbid(unsafe_code)]

pub mod client;
mod status;

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

pub use self::status::{
    BatchStatus, CounterKind, CounterStatus, DatastoreStatus, Histogram, LeaseState, NodeStatus,
    PacketLoopStatus, PeerCheck, PeerRoute, PeerState, PeerStatus, Phase, ProbeMethod,
    RefusedRecord, Status,
};

/// Version of this protocol. Fields may be added without a new version; readers skip those that
/// they do not know.
pub const VERSION: u32 = 1;
/// Longest request line, in bytes.
pub(crate) const MAX_REQUEST: usize = 4096;

/// A request as it is sent: `{"v":1,"ask":"status"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestLine {
    /// [`VERSION`].
    pub v: u32,
    /// The request.
    #[serde(flatten)]
    pub request: Request,
}

/// A request. None of them changes anything. Everybody who may use the socket may send `status`
/// and `trace`; `capture` shows the containers' traffic and is for root and the daemon's user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Request {
    /// Node, datastore, packet loop, peers, refused records and counters.
    Status,
    /// The path of a packet to an address, and whether a reply would be accepted.
    Trace {
        /// The address.
        to: Ipv4Addr,
    },
    /// Packets as they pass. A pcapng stream follows the response on the same connection; it ends
    /// when the client closes its half, or after the requested number of packets.
    Capture(CaptureRequest),
}

/// Which packets to capture.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaptureRequest {
    /// Where packets are captured; in both places by default.
    pub view: Option<CaptureView>,
    /// Only those of this peer: its address or its subnet.
    pub peer: Option<String>,
    /// Only those with this inner address.
    pub host: Option<Ipv4Addr>,
    /// Only those that are dropped.
    pub dropped: bool,
    /// Bytes that are kept of each packet; all by default.
    pub snap_len: Option<u32>,
    /// End after this many packets.
    pub count: Option<u64>,
}

/// Where packets are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureView {
    /// At the device.
    Inner,
    /// At the socket, with the VXLAN header.
    Outer,
    /// In both places.
    Both,
}

/// A response as it is sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResponseLine {
    /// [`VERSION`].
    pub v: u32,
    /// The response.
    #[serde(flatten)]
    pub response: Response,
}

/// The response to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Trace`].
    Trace(Vec<Step>),
    /// To [`Request::Capture`]: the stream follows this line.
    Capture {},
    /// Why the request cannot be answered.
    Error(String),
}

/// One condition that a packet has to meet on its path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What is checked.
    pub name: String,
    /// What was found.
    pub text: String,
    /// Whether the packet gets past it.
    pub passes: bool,
}

impl Step {
    pub(crate) fn passed(name: &str, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
            passes: true,
        }
    }

    pub(crate) fn failed(name: &str, text: impl Into<String>) -> Self {
        Self {
            passes: false,
            ..Self::passed(name, text)
        }
    }
}

/// Parses a request line.
///
/// # Errors
/// In words, for the sender.
pub fn read_request(line: &[u8]) -> Result<Request, String> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    let version: Version = serde_json::from_slice(line).map_err(|error| {
        let error = one_line(&error);
        format!("a request is one line like {{\"v\":1,\"ask\":\"status\"}}: {error}")
    })?;
    if version.v != VERSION {
        let requested = version.v;
        return Err(format!(
            "this daemon speaks version {VERSION} of the protocol, not {requested}: use the program \
             that the daemon was started from"
        ));
    }
    serde_json::from_slice::<RequestLine>(line)
        .map(|line| line.request)
        .map_err(|error| format!("unknown request: {}", one_line(&error)))
}

/// The error quotes the request, which may hold control characters.
fn one_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_requests_are_parsed_and_others_explained() {
        assert_eq!(
            read_request(br#"{"v":1,"ask":"status"}"#),
            Ok(Request::Status)
        );
        let trace = br#"{"v":1,"ask":"trace","to":"10.5.1.2","more":true}"#;
        let capture = br#"{"v":1,"ask":"capture","view":"outer","dropped":true}"#;
        let dropped = CaptureRequest {
            view: Some(CaptureView::Outer),
            dropped: true,
            ..CaptureRequest::default()
        };
        assert_eq!(read_request(capture), Ok(Request::Capture(dropped)));
        let to = Ipv4Addr::new(10, 5, 1, 2);
        assert_eq!(read_request(trace), Ok(Request::Trace { to }));
        for (line, expected) in [
            (&br#"{"v":2,"ask":"status"}"#[..], "version 1"),
            (br#"{"v":1,"ask":"reboot"}"#, "unknown request"),
            (br#"{"v":1,"ask":"trace"}"#, "unknown request"),
            (br#"{"v":1,"ask":"capture","view":"upper"}"#, "`outer`"),
            (b"", "one line"),
            (b"GET / HTTP/1.1", "one line"),
            // Found by the fuzzer: the error quoted the request's control characters.
            (br#"{"v":1,"ask":"tr\n\u001b[2J"}"#, "unknown request"),
        ] {
            let error = read_request(line).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn responses_survive_a_round_trip() {
        let trace = ResponseLine {
            v: VERSION,
            response: Response::Trace(vec![Step::failed("lease", "none")]),
        };
        let text = serde_json::to_string(&trace).unwrap();
        assert_eq!(
            text,
            r#"{"v":1,"trace":[{"name":"lease","text":"none","passes":false}]}"#
        );
        assert_eq!(serde_json::from_str::<ResponseLine>(&text).unwrap(), trace);
        let status = ResponseLine {
            v: VERSION,
            response: Response::Status(Box::default()),
        };
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<ResponseLine>(&text).unwrap(), status);
    }
}
