//! What a user may say about etcd, whichever API is spoken, checked before anything is sent.

mod failures;
mod keys;
mod login;
mod tls;

use std::path::PathBuf;
use std::time::Duration;

pub(super) use self::failures::Failures;
pub(super) use self::keys::{clean_path, join};
pub(super) use self::login::RefusedLogin;
pub use self::tls::TlsFileError;
pub(super) use self::tls::TlsFiles;
pub(crate) use self::tls::trusting_nobody;
use super::secret::Secret;

/// flannel's default of `--etcd-endpoints`.
pub(crate) const DEFAULT_ENDPOINTS: &str = "http://127.0.0.1:4001,http://127.0.0.1:2379";
/// flannel's default of `--etcd-prefix`.
pub(crate) const DEFAULT_PREFIX: &str = "/coreos.com/network";

/// How to reach etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdOptions {
    /// URLs of the members, tried in turn: `http://10.0.0.1:2379`. Without a scheme,
    /// `https` if a TLS file is given, else `http`.
    pub endpoints: Vec<String>,
    /// Key prefix of the network config and the leases.
    pub prefix: String,
    /// PEM file with the authorities that sign the members' certificates. Without it, an
    /// `https` member is checked against the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// PEM file with our certificate; needs `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM file with our private key; needs `cert_file`.
    pub key_file: Option<PathBuf>,
    /// etcd user; needs `password`.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// Whether the password may go over a network without TLS.
    pub insecure_password: bool,
    /// Longest time for one operation, all endpoints together.
    pub timeout: Duration,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            endpoints: DEFAULT_ENDPOINTS.split(',').map(str::to_owned).collect(),
            prefix: DEFAULT_PREFIX.to_owned(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: None,
            password: None,
            insecure_password: false,
            timeout: Duration::from_secs(15),
        }
    }
}

/// Why options can't be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum EtcdOptionsError {
    /// Nothing to connect to.
    #[error("no etcd endpoint is given; give at least one, like http://10.0.0.1:2379")]
    NoEndpoint,
    /// An endpoint is no URL of an etcd member.
    #[error("etcd endpoint {endpoint:?}: {reason}; {cure}")]
    Endpoint {
        /// As given, without what may be a password.
        endpoint: String,
        /// What is wrong.
        reason: &'static str,
        /// What to write instead.
        cure: &'static str,
    },
    /// One half of the client certificate is missing.
    #[error(
        "the etcd client {given} is given without its {missing}: give both --etcd-certfile and \
         --etcd-keyfile, or none of them (--etcd-cafile alone is fine)"
    )]
    HalfCertificate {
        /// `certificate` or `key`.
        given: &'static str,
        /// `key` or `certificate`.
        missing: &'static str,
    },
    /// One half of user and password is missing.
    #[error("the etcd {given} is given without its {missing}: give both, or none of them")]
    HalfUser {
        /// `username` or `password`.
        given: &'static str,
        /// `password` or `username`.
        missing: &'static str,
    },
    /// The password would go over the network for everybody to read.
    #[error(
        "the etcd password would go to {endpoint} without TLS, for everybody on the way to read: \
         use https, or say --insecure-etcd"
    )]
    PlainPassword {
        /// The endpoint.
        endpoint: String,
    },
    /// A TLS file cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsFileError),
}

impl EtcdOptionsError {
    /// Whether the files of TLS are at fault.
    #[must_use]
    pub(crate) const fn is_about_tls(&self) -> bool {
        matches!(self, Self::HalfCertificate { .. } | Self::Tls(_))
    }
}

/// Longest time for TCP and TLS to come up.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest answer that is read, in bytes: 65,536 records of 1 KiB.
pub(super) const MAX_ANSWER: usize = 64 << 20;

impl EtcdOptions {
    /// The members' URLs, checked and normalized: `scheme://host:port`.
    ///
    /// # Errors
    /// When an option can't be meant, or a TLS file can't be read.
    pub(crate) fn members(&self) -> Result<Vec<String>, EtcdOptionsError> {
        Ok(self.clone().check()?.endpoints)
    }

    /// The TLS client for a normalized endpoint; `None` for one without TLS.
    ///
    /// # Errors
    /// When the TLS files can't be used.
    pub(crate) fn client_tls(
        &self,
        endpoint: &str,
    ) -> Result<Option<rustls::ClientConfig>, Box<dyn std::error::Error + Send + Sync>> {
        match self.tls_files(endpoint)? {
            None => Ok(None),
            Some(files) => files.client().map(Some),
        }
    }

    /// Checks what can be checked without a network and normalizes the endpoints.
    pub(super) fn check(mut self) -> Result<Self, EtcdOptionsError> {
        self.check_pairs()?;
        let has_tls_file = self.ca_file.is_some() || self.cert_file.is_some();
        self.endpoints = self
            .endpoints
            .iter()
            .map(|endpoint| normalize_endpoint(endpoint, has_tls_file))
            .collect::<Result<_, _>>()?;
        if self.endpoints.is_empty() {
            return Err(EtcdOptionsError::NoEndpoint);
        }
        for endpoint in &self.endpoints {
            let plain = self.username.is_some() && !endpoint.starts_with("https://");
            if plain && !self.insecure_password && !is_loopback(endpoint) {
                return Err(EtcdOptionsError::PlainPassword {
                    endpoint: endpoint.clone(),
                });
            }
            self.tls_files(endpoint)?;
        }
        Ok(self)
    }

    fn check_pairs(&self) -> Result<(), EtcdOptionsError> {
        let half = |given, missing| Err(EtcdOptionsError::HalfCertificate { given, missing });
        match (&self.cert_file, &self.key_file) {
            (Some(_), None) => return half("certificate", "key"),
            (None, Some(_)) => return half("key", "certificate"),
            _ => {}
        }
        let half = |given, missing| Err(EtcdOptionsError::HalfUser { given, missing });
        match (&self.username, &self.password) {
            (Some(_), None) => half("username", "password"),
            (None, Some(_)) => half("password", "username"),
            _ => Ok(()),
        }
    }

    /// The TLS files as they are now, so that replaced certificates are used from the next
    /// connection on; `None` for an endpoint without TLS.
    pub(super) fn tls_files(&self, endpoint: &str) -> Result<Option<TlsFiles>, TlsFileError> {
        if !endpoint.starts_with("https://") {
            return Ok(None);
        }
        let identity = self.cert_file.as_deref().zip(self.key_file.as_deref());
        TlsFiles::read(self.ca_file.as_deref(), identity).map(Some)
    }
}

/// Brings an endpoint to `scheme://host:port`. Blanks in it come from units whose options
/// arrive as one argument, so they are named.
fn normalize_endpoint(endpoint: &str, has_tls_file: bool) -> Result<String, EtcdOptionsError> {
    let refuse = |reason, cure| {
        let shown = match endpoint.rsplit_once('@') {
            Some((_, host)) => format!("***@{host}"),
            None => endpoint.to_owned(),
        };
        Err(EtcdOptionsError::Endpoint {
            endpoint: shown,
            reason,
            cure,
        })
    };
    if endpoint
        .chars()
        .any(|c| c.is_whitespace() || c.is_control())
    {
        return refuse(
            "it contains a blank",
            "separate endpoints by commas, options by quotes",
        );
    }
    let (scheme, rest) = match endpoint.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        None if has_tls_file => ("https", endpoint),
        None => ("http", endpoint),
    };
    if scheme != "http" && scheme != "https" {
        return refuse(
            "its scheme is neither http nor https",
            "write http://HOST:PORT",
        );
    }
    let authority = rest.trim_end_matches('/');
    if authority.is_empty() {
        return refuse("it names no host", "write http://HOST:PORT");
    }
    if authority.contains('@') {
        return refuse(
            "it contains a user",
            "give --etcd-username and --etcd-password",
        );
    }
    if authority.contains(['/', '?', '#', ',']) {
        return refuse(
            "it has more than a host and a port",
            "write http://HOST:PORT",
        );
    }
    // A bracketed IPv6 address has colons of its own.
    let after_host = authority
        .rsplit_once(']')
        .map_or(authority, |(_, after)| after);
    match after_host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok_and(|port| port != 0) => {
            Ok(format!("{scheme}://{authority}"))
        }
        Some(_) => refuse(
            "its port is not a number from 1 to 65535",
            "write http://HOST:PORT",
        ),
        None => Ok(format!("{scheme}://{authority}:2379")),
    }
}

/// Whether a normalized endpoint is this very host.
pub(super) fn is_loopback(endpoint: &str) -> bool {
    let authority = endpoint.split("://").last().unwrap_or_default();
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_endpoint(endpoint: &str) -> EtcdOptions {
        EtcdOptions {
            endpoints: vec![endpoint.into()],
            ..EtcdOptions::default()
        }
    }

    #[test]
    fn endpoints_take_the_forms_that_flannel_takes() {
        for (given, expected) in [
            ("http://10.0.0.1:2379", "http://10.0.0.1:2379"),
            ("http://10.0.0.1:2379/", "http://10.0.0.1:2379"),
            ("10.0.0.1:4001", "http://10.0.0.1:4001"),
            ("http://etcd.local", "http://etcd.local:2379"),
            ("http://[fd00::1]:2379", "http://[fd00::1]:2379"),
            ("http://[fd00::1]", "http://[fd00::1]:2379"),
        ] {
            let checked = with_endpoint(given).check().unwrap();
            assert_eq!(checked.endpoints, [expected], "{given}");
        }
    }

    #[test]
    fn endpoints_that_cannot_be_meant_are_refused_with_the_cure() {
        for (given, expected) in [
            ("http://10.0.0.1:2379 --iface=eth1", "blank"),
            ("ftp://10.0.0.1", "scheme"),
            ("http://", "no host"),
            ("http://10.0.0.1:0", "port"),
            ("http://10.0.0.1:x", "port"),
            ("http://10.0.0.1:2379/v3", "more than a host"),
        ] {
            let error = with_endpoint(given).check().unwrap_err().to_string();
            assert!(error.contains(expected), "{given}: {error}");
        }
        let none = EtcdOptions {
            endpoints: vec![],
            ..EtcdOptions::default()
        };
        assert!(matches!(none.check(), Err(EtcdOptionsError::NoEndpoint)));
    }

    #[test]
    fn a_password_is_never_shown() {
        let error = with_endpoint("http://root:geheim@10.0.0.1:2379")
            .check()
            .unwrap_err();
        assert!(!format!("{error} {error:?}").contains("geheim"), "{error}");
        let options = EtcdOptions {
            username: Some("root".into()),
            password: Some("geheim".into()),
            ..EtcdOptions::default()
        };
        assert!(!format!("{options:?}").contains("geheim"));
    }

    #[test]
    fn a_password_goes_over_no_network_without_tls_unless_told() {
        let with = |endpoint: &str, insecure| EtcdOptions {
            username: Some("u".into()),
            password: Some("geheim".into()),
            insecure_password: insecure,
            ..with_endpoint(endpoint)
        };
        let error = with("http://10.0.0.1:2379", false).check().unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("--insecure-etcd") && !text.contains("geheim"),
            "{text}"
        );
        assert!(with("http://10.0.0.1:2379", true).check().is_ok());
        for own in [
            "http://127.0.0.1:2379",
            "http://[::1]:2379",
            "http://localhost",
        ] {
            assert!(with(own, false).check().is_ok(), "{own}");
        }
        assert!(with_endpoint("http://10.0.0.1:2379").check().is_ok());
    }

    #[test]
    fn half_a_pair_is_refused() {
        let error = EtcdOptions {
            cert_file: Some("c.pem".into()),
            ..EtcdOptions::default()
        }
        .check()
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("without its key") && error.contains("--etcd-keyfile"),
            "{error}"
        );
        let error = EtcdOptions {
            key_file: Some("k.pem".into()),
            ..EtcdOptions::default()
        }
        .check()
        .unwrap_err()
        .to_string();
        assert!(error.contains("without its certificate"), "{error}");
        let error = EtcdOptions {
            username: Some("u".into()),
            ..EtcdOptions::default()
        }
        .check()
        .unwrap_err()
        .to_string();
        assert!(error.contains("without its password"), "{error}");
    }

    #[test]
    fn tls_files_are_read_at_once() {
        let missing = EtcdOptions {
            endpoints: vec!["https://10.0.0.1:2379".into()],
            ca_file: Some("/nonexistent/ca.pem".into()),
            ..EtcdOptions::default()
        };
        let error = missing.check().unwrap_err().to_string();
        assert!(error.contains("/nonexistent/ca.pem"), "{error}");

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "no certificate").unwrap();
        let wrong = EtcdOptions {
            endpoints: vec!["10.0.0.1:2379".into()],
            ca_file: Some(file.path().to_owned()),
            ..EtcdOptions::default()
        };
        assert!(matches!(
            wrong.check(),
            Err(EtcdOptionsError::Tls(TlsFileError::NotPem { .. }))
        ));
    }
}
