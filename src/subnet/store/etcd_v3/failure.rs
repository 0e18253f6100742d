//! What an error of etcd or its client library means for us.
//!
//! etcd uses one gRPC code for many errors and tells them apart by the message alone, so
//! messages are matched here, and nowhere else.

use std::error::Error as StdError;

use etcd_client::Error as EtcdError;

use super::super::StoreErrorKind;
use super::super::error::{is_about_certificate, with_causes};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// This member, or the path to it.
    Member,
    /// The TLS certificate of this member, or ours.
    Certificate,
    /// The login is out of date: logging in again may help.
    StaleLogin,
    /// The user or password.
    LoginRefused,
    /// etcd has authentication disabled.
    AuthDisabled,
    /// etcd does not know the lease (any more).
    LeaseGone,
    /// The revision asked for is compacted.
    Compacted,
    /// The response exceeds the size that is read.
    TooLarge,
    /// Too many requests, or the database is full.
    Exhausted,
    /// Anything else that every member would refuse.
    Request,
}

impl Fault {
    /// Whether another member may do better.
    pub(super) fn is_of_one_member(self) -> bool {
        matches!(self, Self::Member | Self::Certificate)
    }

    pub(super) fn kind(self) -> StoreErrorKind {
        match self {
            Self::Member | Self::StaleLogin | Self::Exhausted => StoreErrorKind::Transient,
            Self::LoginRefused => StoreErrorKind::LoginRefused,
            _ => StoreErrorKind::Permanent,
        }
    }
}

/// A failed try.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) fault: Fault,
    /// The error and its causes, in one line.
    pub(super) text: String,
}

const MESSAGES: [(&str, Fault); 9] = [
    ("authentication failed", Fault::LoginRefused),
    ("authentication is not enabled", Fault::AuthDisabled),
    ("invalid auth token", Fault::StaleLogin),
    ("revision of auth store is old", Fault::StaleLogin),
    ("revision in header is old", Fault::StaleLogin),
    // Authentication was enabled after we connected without.
    ("user name is empty", Fault::StaleLogin),
    ("requested lease not found", Fault::LeaseGone),
    ("required revision has been compacted", Fault::Compacted),
    ("message length too large", Fault::TooLarge),
];

impl Failure {
    pub(super) fn of_member(text: String) -> Self {
        let fault = Fault::Member;
        Self { fault, text }
    }

    pub(super) fn timeout() -> Self {
        Self::of_member("no answer in time".to_owned())
    }

    /// A failure that etcd reports as a text, without a code.
    pub(super) fn of_message(text: String) -> Self {
        let fault = by_message(&text).unwrap_or(Fault::Member);
        Self { fault, text }
    }

    /// The same, naming the member.
    pub(super) fn at(self, url: &str) -> Self {
        let text = format!("{url}: {}", self.text);
        Self { text, ..self }
    }
}

impl From<EtcdError> for Failure {
    fn from(error: EtcdError) -> Self {
        let (text, cause): (_, Option<&(dyn StdError + 'static)>) = match &error {
            EtcdError::GRpcStatus(status) => (status.message().to_owned(), status.source()),
            EtcdError::TransportError(transport) => (error.to_string(), transport.source()),
            EtcdError::IoError(io) => (error.to_string(), io.source()),
            other => (other.to_string(), None),
        };
        let text = with_causes(text, cause);
        let fault = match &error {
            EtcdError::GRpcStatus(status) => {
                by_message(status.message()).unwrap_or_else(|| by_code(status.code() as i32))
            }
            // The library's error for an answer with TTL 0.
            EtcdError::LeaseKeepAliveError(reason) if reason == "lease not found" => {
                Fault::LeaseGone
            }
            EtcdError::InvalidArgs(_) | EtcdError::InvalidUri(_) => Fault::Request,
            _ => Fault::Member,
        };
        let fault = match fault {
            Fault::Member if is_about_certificate(&text) => Fault::Certificate,
            other => other,
        };
        Self { fault, text }
    }
}

fn by_message(text: &str) -> Option<Fault> {
    let known = |(message, _): &&(&str, _)| text.contains(message);
    MESSAGES.iter().find(known).map(|(_, fault)| *fault)
}

/// The fault that a gRPC code stands for (the numbers of `google.rpc.Code`).
fn by_code(code: i32) -> Fault {
    match code {
        // Cancelled, Unknown, DeadlineExceeded, Aborted, Internal, Unavailable, DataLoss.
        1 | 2 | 4 | 10 | 13 | 14 | 15 => Fault::Member,
        // Unauthenticated.
        16 => Fault::StaleLogin,
        // ResourceExhausted.
        8 => Fault::Exhausted,
        _ => Fault::Request,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_without_a_code_are_sorted_by_their_message() {
        let fault = |text: &str| Failure::of_message(text.to_owned()).fault;
        let refused = "etcdserver: authentication failed, invalid user ID or password";
        assert_eq!(fault(refused), Fault::LoginRefused);
        assert_eq!(fault("etcdserver: invalid auth token"), Fault::StaleLogin);
        assert_eq!(fault("etcdserver: no leader"), Fault::Member);
    }

    #[test]
    fn an_error_of_the_library_keeps_its_cause() {
        let io = |text: &str| EtcdError::IoError(std::io::Error::other(text));
        let certificate = Failure::from(io("invalid peer certificate: UnknownIssuer"));
        assert_eq!(certificate.fault, Fault::Certificate);
        assert_eq!(certificate.fault.kind(), StoreErrorKind::Permanent);
        assert!(certificate.fault.is_of_one_member());
        let refused = Failure::from(io("connection refused")).at("http://a:1");
        assert_eq!(refused.fault.kind(), StoreErrorKind::Transient);
        assert!(refused.text.starts_with("http://a:1: "), "{}", refused.text);
        let gone = EtcdError::LeaseKeepAliveError("lease not found".into());
        assert_eq!(Failure::from(gone).fault, Fault::LeaseGone);
    }
}
