//! Errors of a store.

use std::error::Error;

/// What a caller can do about a [`StoreError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// Retrying later can help.
    Transient,
    /// The store refused user or password. Retrying soon is useless, and costs the store a
    /// password hash each time, but an administrator may correct the account.
    LoginRefused,
    /// Retrying cannot help: a refused certificate, a missing permission.
    Permanent,
}

/// An error of a store.
#[derive(Debug, thiserror::Error)]
#[error("{operation} at {location}: {source}")]
pub struct StoreError {
    /// What was tried, for a sentence: "reading the network config".
    pub operation: &'static str,
    /// Endpoint list or path, and key. Never a secret.
    pub location: String,
    /// What a caller can do.
    pub kind: StoreErrorKind,
    /// The cause.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

impl StoreError {
    /// Whether retrying later can help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.kind == StoreErrorKind::Transient
    }

    /// Refuses a record name that could leave `subnets/` or hide in it.
    pub(super) fn check_name(
        operation: &'static str,
        location: &str,
        name: &str,
    ) -> Result<(), Self> {
        let reason = if name.is_empty() {
            "the record's name is empty"
        } else if name.starts_with('.') {
            "the record's name starts with a dot"
        } else if name.contains(['/', '\0']) {
            "the record's name contains a slash or a NUL"
        } else {
            return Ok(());
        };
        Err(Self {
            operation,
            location: format!("{location} record {name:?}"),
            kind: StoreErrorKind::Permanent,
            source: reason.into(),
        })
    }
}

/// An error and its causes in one line, without the repetitions that the layers of an HTTP
/// stack add.
pub(super) fn with_causes(mut text: String, mut cause: Option<&(dyn Error + 'static)>) -> String {
    while let Some(inner) = cause {
        let more = inner.to_string();
        if more != "transport error" && !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

/// Whether an error is about a TLS certificate: "invalid peer certificate: …" is rustls's about
/// the member's, "BadCertificate" the member's about ours. The HTTP/2 stack keeps only the text
/// of errors, so there is nothing else to go by.
pub(super) fn is_about_certificate(text: &str) -> bool {
    text.to_lowercase().contains("certificate")
}
