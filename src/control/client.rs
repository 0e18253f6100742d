//! Sends a request to a running daemon.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Request, RequestLine, Response, ResponseLine, VERSION};

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest response, in bytes: 65,536 peers of 500 bytes.
const MAX_RESPONSE: u64 = 64 << 20;

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error(
        "no daemon answers at {}: {source}; is one running (systemctl status uvxlan), and was it \
         started with another --control-socket?", path.display()
    )]
    NoDaemon { path: PathBuf, source: io::Error },
    #[error("may not ask the daemon at {}: {source}; run as root", path.display())]
    Forbidden { path: PathBuf, source: io::Error },
    #[error("the daemon at {} did not answer: {source}", path.display())]
    Broken { path: PathBuf, source: io::Error },
    /// The daemon's own words.
    #[error("{0}")]
    Refused(String),
}

/// Sends a request to the daemon whose control socket is at `path`.
///
/// # Errors
/// [`ClientError`] says what to do.
pub(crate) fn send(path: &Path, request: Request) -> Result<Response, ClientError> {
    send_within(path, request, RESPONSE_TIMEOUT)
}

/// Sends a request, with another timeout.
///
/// # Errors
/// [`ClientError`] says what to do.
pub(crate) fn send_within(
    path: &Path,
    request: Request,
    timeout: Duration,
) -> Result<Response, ClientError> {
    open_stream(path, request, timeout).map(|(response, _)| response)
}

/// Sends a request, and returns what follows the response too: the bytes that came with it, and
/// the connection.
///
/// # Errors
/// [`ClientError`] says what to do.
pub(crate) fn open_stream(
    path: &Path,
    request: Request,
    timeout: Duration,
) -> Result<(Response, (Vec<u8>, UnixStream)), ClientError> {
    let path = path.to_owned();
    let mut stream = UnixStream::connect(&path).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => ClientError::Forbidden {
            path: path.clone(),
            source,
        },
        _ => ClientError::NoDaemon {
            path: path.clone(),
            source,
        },
    })?;
    let broken = |source| ClientError::Broken {
        path: path.clone(),
        source,
    };
    let (line, rest) = exchange(&mut stream, request, timeout).map_err(broken)?;
    let line: ResponseLine = serde_json::from_slice(&line)
        .map_err(|error| broken(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    match line.response {
        Response::Error(text) => Err(ClientError::Refused(text)),
        response => Ok((response, (rest, stream))),
    }
}

/// The response line, and the bytes that were read behind it.
fn exchange(
    stream: &mut UnixStream,
    request: Request,
    timeout: Duration,
) -> io::Result<(Vec<u8>, Vec<u8>)> {
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut bytes = serde_json::to_vec(&RequestLine {
        v: VERSION,
        request,
    })?;
    bytes.push(b'\n');
    stream.write_all(&bytes)?;
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream);
    (&mut reader)
        .take(MAX_RESPONSE)
        .read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((line, reader.buffer().to_vec()))
}
