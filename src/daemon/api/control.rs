//! The control socket: takes requests from local users who may send them, and hands them to the
//! daemon.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::capture::{Capture, Captures};
use crate::control::{self, CaptureRequest, MAX_REQUEST, Request, Response, ResponseLine, VERSION};

/// Connections at a time; more wait.
const CONNECTIONS: usize = 16;
/// How long one connection may last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Read and written by the owner and the group: those of the daemon's process, so a unit's
/// `Group=` names the users that may send requests without being root.
const MODE: u32 = 0o660;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A request that waits for the daemon's response.
#[derive(Debug)]
pub(crate) struct PendingRequest {
    pub(crate) request: Request,
    pub(crate) respond: oneshot::Sender<Response>,
}

/// Sends requests to the daemon from inside of it.
pub(crate) type Requests = mpsc::Sender<PendingRequest>;

/// Sends a request; `None` if the daemon is stopping.
pub(super) async fn send(requests: &Requests, request: Request) -> Option<Response> {
    let (respond, response) = oneshot::channel();
    let pending = PendingRequest { request, respond };
    requests.send(pending).await.ok()?;
    response.await.ok()
}

/// The socket's file; removed when dropped.
#[derive(Debug)]
pub(crate) struct ControlSocket(Option<PathBuf>);

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // It may be gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Listens at `path` until the runtime ends. A daemon forwards without a control socket too, so a
/// failure is only logged.
pub(crate) fn serve(path: &Path, requests: Requests, captures: Captures) -> ControlSocket {
    match listen(path) {
        Ok(listener) => {
            tokio::spawn(accept(listener, requests, captures));
            ControlSocket(Some(path.to_owned()))
        }
        Err(error) => {
            tracing::warn!(
                event = "no_control_socket", path = %path.display(), %error,
                "status, trace and top will not find this daemon (--control-socket)"
            );
            ControlSocket(None)
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if path.exists() {
        // Never take the socket of a daemon that lives; remove what a dead one left behind.
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another daemon answers there",
            ));
        }
        std::fs::remove_file(path)?;
    }
    let listener = bind(path)?;
    // The umask may have cleared bits that are wanted.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    Ok(listener)
}

/// Binds the socket so that its file is never open to all: the file takes its mode from the
/// socket's, which is set before (unix(7)).
fn bind(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(MODE))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket.into())
}

async fn accept(listener: UnixListener, requests: Requests, captures: Captures) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (requests, captures) = (requests.clone(), captures.clone());
                tokio::spawn(async move {
                    // A slow client is not worth a line in the log.
                    let exchange = exchange(stream, requests, &captures);
                    let done = tokio::time::timeout(CONNECTION_TIMEOUT, exchange).await;
                    drop(slot);
                    if let Ok(Ok(Some((capture, stream)))) = done {
                        // Nor is one that closes the stream.
                        let _ = capture.stream(stream).await;
                    }
                });
            }
            Err(error) => {
                tracing::debug!(event = "control_failed", %error);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Responds to one request. After a capture request, returns the capture and the connection that
/// it is to be streamed over.
async fn exchange(
    mut stream: UnixStream,
    requests: Requests,
    captures: &Captures,
) -> io::Result<Option<(Capture, UnixStream)>> {
    let mut line = Vec::new();
    BufReader::new(&mut stream)
        .take(MAX_REQUEST as u64)
        .read_until(b'\n', &mut line)
        .await?;
    let mut begun = None;
    let response = match control::read_request(&line) {
        Ok(Request::Capture(wanted)) => {
            match begin_capture(&stream, &requests, captures, &wanted).await {
                Ok(capture) => {
                    begun = Some(capture);
                    Response::Capture {}
                }
                Err(text) => Response::Error(text),
            }
        }
        Ok(request) => send(&requests, request).await.unwrap_or_else(stopping),
        Err(text) => Response::Error(text),
    };
    let line = ResponseLine {
        v: VERSION,
        response,
    };
    let mut line = serde_json::to_vec(&line)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    Ok(begun.map(|capture| (capture, stream)))
}

fn stopping() -> Response {
    Response::Error("the daemon is stopping".into())
}

async fn begin_capture(
    stream: &UnixStream,
    requests: &Requests,
    captures: &Captures,
    wanted: &CaptureRequest,
) -> Result<Capture, String> {
    // The group may read counters, but not the containers' traffic.
    let user = stream.peer_cred().map(|peer| peer.uid());
    let own = rustix::process::geteuid().as_raw();
    if !user.is_ok_and(|user| user == 0 || user == own) {
        return Err("only root and the daemon's own user may capture".into());
    }
    let response = send(requests, Request::Status).await;
    match response.unwrap_or_else(stopping) {
        Response::Status(status) => captures.begin(wanted, &status),
        Response::Error(text) => Err(text),
        _ => Err("the daemon's status cannot be read".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_never_open_to_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let _listener = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o117, 0, "{mode:o}");
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
    }
}
