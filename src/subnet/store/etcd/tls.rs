//! TLS to etcd: the PEM files, and the client made of them.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// Where distributions keep the authorities, in the order of Go's `crypto/x509`.
const SYSTEM_AUTHORITIES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why the TLS files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// A file cannot be read.
    #[error("reading the etcd {purpose} from {}: {source}", path.display())]
    Unreadable {
        /// `CA`, `certificate` or `key`.
        purpose: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system call.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("the etcd {purpose} file {} has no PEM block {expected:?}", path.display())]
    NotPem {
        /// `CA`, `certificate` or `key`.
        purpose: &'static str,
        /// The file.
        path: PathBuf,
        /// The marker that is missing.
        expected: &'static str,
    },
    /// An `https` endpoint, no CA file, and no authorities on this system.
    #[error(
        "an etcd endpoint is https, but no CA file is given and this system has no bundle of \
         authorities: give --etcd-cafile"
    )]
    NoAuthorities,
}

/// PEM texts of a TLS connection.
pub(in super::super) struct TlsFiles {
    /// Who may sign the members' certificates.
    pub(in super::super) authorities: Vec<u8>,
    /// Our certificate and its key.
    pub(in super::super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl TlsFiles {
    /// Reads the files; the system's authorities without a `ca_file`.
    pub(super) fn read(
        ca_file: Option<&Path>,
        identity: Option<(&Path, &Path)>,
    ) -> Result<Self, TlsFileError> {
        let identity = match identity {
            Some((cert, key)) => Some((
                read_pem("certificate", cert, "CERTIFICATE-----")?,
                read_pem("key", key, "PRIVATE KEY-----")?,
            )),
            None => None,
        };
        let ca = |path| read_pem("CA", path, "CERTIFICATE-----");
        let authorities = match ca_file {
            Some(path) => ca(path)?,
            None => SYSTEM_AUTHORITIES
                .iter()
                .find_map(|path| ca(Path::new(path)).ok())
                .ok_or(TlsFileError::NoAuthorities)?,
        };
        Ok(Self {
            authorities,
            identity,
        })
    }

    pub(in super::super) fn client(self) -> Result<ClientConfig, Box<dyn Error + Send + Sync>> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&self.authorities) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        Ok(match self.identity {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = CertificateDer::pem_slice_iter(&cert).collect::<Result<_, _>>()?;
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&key)?)?
            }
        })
    }
}

/// A TLS client that trusts no server: whoever answers it speaks TLS, and no more is learnt.
#[must_use]
pub(crate) fn trusting_nobody() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    match config.with_safe_default_protocol_versions() {
        Ok(config) => config,
        // ring has every version that rustls has.
        Err(_) => ClientConfig::builder(),
    }
    .with_root_certificates(RootCertStore::empty())
    .with_no_client_auth()
}

fn read_pem(
    purpose: &'static str,
    path: &Path,
    expected: &'static str,
) -> Result<Vec<u8>, TlsFileError> {
    let text = std::fs::read(path).map_err(|source| TlsFileError::Unreadable {
        purpose,
        path: path.to_owned(),
        source,
    })?;
    let mut windows = text.windows(expected.len());
    if windows.any(|window| window == expected.as_bytes()) {
        return Ok(text);
    }
    Err(TlsFileError::NotPem {
        purpose,
        path: path.to_owned(),
        expected,
    })
}
