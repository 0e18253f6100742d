//! Asks one member of etcd for its version. This is done without a client library, because those
//! report every failure in the same words.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::ServerName;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Error as TlsError,
};

use super::REPLY_TIMEOUT;
use crate::doctor::facts::{MemberError, MemberReply, TlsFault};
use crate::subnet::store::etcd;

/// Most bytes of a reply to read.
const MAX_REPLY: u64 = 16 * 1024;

/// Asks a member. Blocks for some seconds if it does not answer.
pub(super) fn probe(
    url: &str,
    tls: Result<Option<ClientConfig>, String>,
    has_identity: bool,
) -> Result<MemberReply, MemberError> {
    let (_, authority) = url.split_once("://").unwrap_or(("", url));
    let plain = |authority: &str| -> io::Result<MemberReply> {
        let mut stream = connect(authority)?;
        ask(&mut stream, authority)
    };
    match tls {
        Err(text) => Err(MemberError::Tls(TlsFault::OurFiles, text)),
        Ok(None) => match plain(authority) {
            // Some TLS servers reply with this status; others close the connection.
            Ok(reply) if reply.status != 400 => Ok(reply),
            other if speaks_tls(authority) => {
                drop(other);
                Err(MemberError::WantsTls)
            }
            Ok(reply) => Ok(reply),
            Err(error) => Err(MemberError::Connection(error.to_string())),
        },
        Ok(Some(config)) => {
            let refine = |error: MemberError| match error {
                MemberError::Tls(TlsFault::Other | TlsFault::NoTls, text)
                | MemberError::Connection(text)
                    if plain(authority).is_ok() =>
                {
                    MemberError::Tls(TlsFault::NoTls, text)
                }
                other => other,
            };
            over_tls(authority, config, has_identity).map_err(refine)
        }
    }
}

fn connect(authority: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, REPLY_TIMEOUT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
                stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Asks for the version; reads the status and the date of the reply.
fn ask(stream: &mut (impl Read + Write), authority: &str) -> io::Result<MemberReply> {
    let request =
        format!("GET /version HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut text = Vec::new();
    let read = stream.take(MAX_REPLY).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    match (read_head(&text, SystemTime::now()), read) {
        (Some(reply), _) => Ok(reply),
        (None, Err(error)) => Err(error),
        (None, Ok(0)) => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the member closed the connection without a reply",
        )),
        (None, Ok(_)) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the member replied, but not in HTTP",
        )),
    }
}

/// Status and date of an HTTP reply; `None` if it is not one.
#[must_use]
pub fn read_head(text: &str, now: SystemTime) -> Option<MemberReply> {
    let head = text.split("\r\n\r\n").next()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?;
    let status = status.split(' ').nth(1)?.parse().ok()?;
    let date = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("date").then(|| value.trim())
    });
    let skew = date
        .and_then(|text| httpdate::parse_http_date(text).ok())
        .map(|theirs| match theirs.duration_since(now) {
            Ok(ahead) => i64::try_from(ahead.as_secs()).unwrap_or(i64::MAX),
            Err(behind) => {
                i64::try_from(behind.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds)
            }
        });
    Some(MemberReply { status, skew })
}

fn over_tls(
    authority: &str,
    config: ClientConfig,
    has_identity: bool,
) -> Result<MemberReply, MemberError> {
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let name = ServerName::try_from(host)
        .map_err(|error| MemberError::Tls(TlsFault::WrongName, error.to_string()))?;
    let member_error = |error: io::Error| match tls_error(&error) {
        Some(inner) => MemberError::Tls(classify(inner, has_identity), inner.to_string()),
        None => MemberError::Connection(error.to_string()),
    };
    let mut socket = connect(authority).map_err(member_error)?;
    let mut connection = ClientConnection::new(Arc::new(config), name)
        .map_err(|error| MemberError::Tls(classify(&error, has_identity), error.to_string()))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).map_err(member_error)?;
    }
    // In TLS 1.3 a member refuses our certificate only after the handshake.
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    ask(&mut stream, authority).map_err(member_error)
}

fn tls_error(error: &io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

fn classify(error: &TlsError, has_identity: bool) -> TlsFault {
    use AlertDescription as Alert;
    let client_fault = match has_identity {
        true => TlsFault::ClientRefused,
        false => TlsFault::ClientWanted,
    };
    match error {
        TlsError::InvalidCertificate(reason) => match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                TlsFault::Expired
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TlsFault::NotYetValid
            }
            // A CA with the same name but another key yields a bad signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                TlsFault::UnknownAuthority
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TlsFault::WrongName
            }
            _ => TlsFault::Other,
        },
        TlsError::AlertReceived(alert) => match alert {
            Alert::CertificateRequired => TlsFault::ClientWanted,
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied => client_fault,
            _ => TlsFault::Other,
        },
        TlsError::InvalidMessage(_) => TlsFault::NoTls,
        _ => TlsFault::Other,
    }
}

/// Whether a server replies to a TLS handshake, even by refusing it.
fn speaks_tls(authority: &str) -> bool {
    match over_tls(authority, etcd::trusting_nobody(), false) {
        Ok(_) => true,
        Err(MemberError::Tls(fault, _)) => fault != TlsFault::NoTls,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    #[test]
    fn status_and_clock_are_read() {
        let now = httpdate::parse_http_date("Tue, 24 Nov 2026 01:45:24 GMT").unwrap();
        let with_date = |date: &str| {
            let text = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nDATE: {date}\r\n\r\n{{}}");
            read_head(&text, now).unwrap()
        };
        let ahead = with_date("Tue, 24 Nov 2026 01:46:24 GMT");
        assert_eq!((ahead.status, ahead.skew), (200, Some(60)));
        let behind = with_date("Tue, 24 Nov 2026 01:45:20 GMT");
        assert_eq!(behind.skew, Some(-4));
        assert_eq!(with_date("yesterday").skew, None);
        for text in ["", "SSH-2.0-x\r\n", "HTTP/1.1 \r\n\r\n"] {
            assert_eq!(read_head(text, now), None, "{text:?}");
        }
    }

    #[test]
    fn a_closed_port_and_a_mute_server_are_connection_errors() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            // The probe, and its second attempt with TLS.
            for _ in 0..2 {
                drop(listener.accept());
            }
        });
        let mute = probe(&url, Ok(None), false);
        assert!(matches!(mute, Err(MemberError::Connection(_))), "{mute:?}");
        server.join().unwrap();
        std::thread::sleep(Duration::from_millis(10));
        let Err(MemberError::Connection(text)) = probe(&url, Ok(None), false) else {
            panic!("nobody listens there");
        };
        assert!(text.contains("refused"), "{text}");
    }

    #[test]
    fn certificate_faults_are_distinguished() {
        let bad = |error| classify(&TlsError::InvalidCertificate(error), false);
        assert_eq!(bad(CertificateError::Expired), TlsFault::Expired);
        assert_eq!(bad(CertificateError::NotValidYet), TlsFault::NotYetValid);
        assert_eq!(
            bad(CertificateError::UnknownIssuer),
            TlsFault::UnknownAuthority
        );
        assert_eq!(bad(CertificateError::NotValidForName), TlsFault::WrongName);
        let alert = TlsError::AlertReceived(AlertDescription::BadCertificate);
        assert_eq!(classify(&alert, false), TlsFault::ClientWanted);
        assert_eq!(classify(&alert, true), TlsFault::ClientRefused);
    }
}
