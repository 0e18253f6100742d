//! Asks one member of etcd for its version, by hand: what fails on the way is told apart,
//! which the client libraries fold into one sentence.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::ServerName;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Error as TlsError,
};

use crate::doctor::facts::{Answer, PATIENCE, TlsFault, Trouble};
use crate::subnet::store::etcd;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 16 * 1024;

/// Asks a member. Blocks for some seconds where it does not answer.
pub(crate) fn probe(
    url: &str,
    tls: Result<Option<ClientConfig>, String>,
    has_identity: bool,
) -> Result<Answer, Trouble> {
    let (_, authority) = url.split_once("://").unwrap_or(("", url));
    let plain = |authority: &str| -> io::Result<Answer> {
        let mut stream = connect(authority)?;
        ask(&mut stream, authority)
    };
    match tls {
        Err(text) => Err(Trouble::Tls(TlsFault::OurFiles, text)),
        Ok(None) => match plain(authority) {
            // Some servers of TLS say so, by this status; others end the connection.
            Ok(answer) if answer.status != 400 => Ok(answer),
            other if speaks_tls(authority) => {
                drop(other);
                Err(Trouble::WantsTls)
            }
            Ok(answer) => Ok(answer),
            Err(error) => Err(Trouble::Connection(error.to_string())),
        },
        Ok(Some(config)) => {
            let failed = |trouble: Trouble| match trouble {
                Trouble::Tls(TlsFault::Other | TlsFault::NoTls, text)
                | Trouble::Connection(text)
                    if plain(authority).is_ok() =>
                {
                    Trouble::Tls(TlsFault::NoTls, text)
                }
                other => other,
            };
            over_tls(authority, config, has_identity).map_err(failed)
        }
    }
}

fn connect(authority: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Asks for the version, and reads status and date of the answer.
fn ask(stream: &mut (impl Read + Write), authority: &str) -> io::Result<Answer> {
    let request =
        format!("GET /version HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut text = Vec::new();
    let read = stream.take(MAX_ANSWER).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    match (read_head(&text, SystemTime::now()), read) {
        (Some(answer), _) => Ok(answer),
        (None, Err(error)) => Err(error),
        (None, Ok(0)) => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it ended the connection without a word",
        )),
        (None, Ok(_)) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it answers, but not by HTTP",
        )),
    }
}

/// Status and date of an HTTP answer; none where it is no such answer.
#[must_use]
pub fn read_head(text: &str, now: SystemTime) -> Option<Answer> {
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
    Some(Answer { status, skew })
}

fn over_tls(authority: &str, config: ClientConfig, has_identity: bool) -> Result<Answer, Trouble> {
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let name = ServerName::try_from(host)
        .map_err(|error| Trouble::Tls(TlsFault::WrongName, error.to_string()))?;
    let trouble = |error: io::Error| match tls_error(&error) {
        Some(inner) => Trouble::Tls(classify(inner, has_identity), inner.to_string()),
        None => Trouble::Connection(error.to_string()),
    };
    let mut socket = connect(authority).map_err(trouble)?;
    let mut connection = ClientConnection::new(Arc::new(config), name)
        .map_err(|error| Trouble::Tls(classify(&error, has_identity), error.to_string()))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket).map_err(trouble)?;
    }
    // With TLS 1.3 a member refuses our certificate only after the handshake.
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    ask(&mut stream, authority).map_err(trouble)
}

fn tls_error(error: &io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

fn classify(error: &TlsError, has_identity: bool) -> TlsFault {
    use AlertDescription as Alert;
    let about_us = match has_identity {
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
            // A CA of the same name with another key gives a bad signature.
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
            | Alert::AccessDenied => about_us,
            _ => TlsFault::Other,
        },
        TlsError::InvalidMessage(_) => TlsFault::NoTls,
        _ => TlsFault::Other,
    }
}

/// Whether a server answers a handshake in TLS, be it by refusing it.
fn speaks_tls(authority: &str) -> bool {
    match over_tls(authority, etcd::trusting_nobody(), false) {
        Ok(_) => true,
        Err(Trouble::Tls(fault, _)) => fault != TlsFault::NoTls,
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
    fn a_closed_port_and_a_mute_server_are_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            // The probe, and its second try by TLS.
            for _ in 0..2 {
                drop(listener.accept());
            }
        });
        let mute = probe(&url, Ok(None), false);
        assert!(matches!(mute, Err(Trouble::Connection(_))), "{mute:?}");
        server.join().unwrap();
        std::thread::sleep(Duration::from_millis(10));
        let Err(Trouble::Connection(text)) = probe(&url, Ok(None), false) else {
            panic!("nobody listens there");
        };
        assert!(text.contains("refused"), "{text}");
    }

    #[test]
    fn faults_of_certificates_are_told_apart() {
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
