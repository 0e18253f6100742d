//! Asks a running daemon.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Answer, Ask, Reply, Request, VERSION};

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer, in bytes: 65,536 peers of 500 bytes.
const MAX_ANSWER: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error(
        "no daemon answers at {}: {source}; is one running (systemctl status uvxlan), and was it \
         started with another --control-socket?", path.display()
    )]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// The socket is there, and not for us.
    #[error("may not ask the daemon at {}: {source}; run as root", path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the daemon at {} did not answer: {source}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// The daemon refused.
    #[error("{0}")]
    Refused(String),
}

/// Asks the daemon whose control socket this is.
///
/// # Errors
/// [`AskError`] says what to do.
pub fn ask(path: &Path, ask: Ask) -> Result<Reply, AskError> {
    ask_within(path, ask, PATIENCE)
}

/// The same, for those who wait less long.
///
/// # Errors
/// [`AskError`] says what to do.
pub fn ask_within(path: &Path, ask: Ask, patience: Duration) -> Result<Reply, AskError> {
    begin(path, ask, patience).map(|(reply, _)| reply)
}

/// The same, and what follows the answer: some bytes that came with it, and the connection.
///
/// # Errors
/// [`AskError`] says what to do.
pub fn begin(
    path: &Path,
    ask: Ask,
    patience: Duration,
) -> Result<(Reply, (Vec<u8>, UnixStream)), AskError> {
    let path = path.to_owned();
    let mut stream = UnixStream::connect(&path).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => AskError::Forbidden {
            path: path.clone(),
            source,
        },
        _ => AskError::NoDaemon {
            path: path.clone(),
            source,
        },
    })?;
    let broken = |source| AskError::Broken {
        path: path.clone(),
        source,
    };
    let (line, rest) = talk(&mut stream, ask, patience).map_err(broken)?;
    let answer: Answer = serde_json::from_slice(&line)
        .map_err(|error| broken(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    match answer.reply {
        Reply::Error(text) => Err(AskError::Refused(text)),
        reply => Ok((reply, (rest, stream))),
    }
}

/// The answer's line, and what was read behind it.
fn talk(stream: &mut UnixStream, ask: Ask, patience: Duration) -> io::Result<(Vec<u8>, Vec<u8>)> {
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut request = serde_json::to_vec(&Request { v: VERSION, ask })?;
    request.push(b'\n');
    stream.write_all(&request)?;
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream);
    (&mut reader)
        .take(MAX_ANSWER)
        .read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((line, reader.buffer().to_vec()))
}
