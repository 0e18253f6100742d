//! The control socket: takes questions from local users who may ask, and hands them to the
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
use crate::control::{self, Answer, Ask, CaptureRequest, MAX_REQUEST, Reply, VERSION};

/// Connections at a time; more wait.
const CONNECTIONS: usize = 16;
/// How long one connection may last.
const PATIENCE: Duration = Duration::from_secs(10);
/// Read and written by the owner and the group: those of the daemon's process, so a unit's
/// `Group=` says who may ask without being root.
const MODE: u32 = 0o660;
/// Connections that may wait to be taken.
const BACKLOG: i32 = 128;

/// A question on its way to the daemon.
#[derive(Debug)]
pub struct Question {
    /// What is asked.
    pub ask: Ask,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Reply>,
}

/// Asks the daemon from inside of it.
pub type Questions = mpsc::Sender<Question>;

/// Sends a question; `None` where the daemon is on its way out.
pub async fn ask(questions: &Questions, ask: Ask) -> Option<Reply> {
    let (reply, answer) = oneshot::channel();
    questions.send(Question { ask, reply }).await.ok()?;
    answer.await.ok()
}

/// The socket's file; removed when dropped.
#[derive(Debug)]
pub struct ControlSocket(Option<PathBuf>);

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Listens at `path` until the runtime ends. A daemon without a control socket forwards as
/// well, so a failure is only logged.
pub fn serve(path: &Path, questions: Questions, captures: Captures) -> ControlSocket {
    match listen(path) {
        Ok(listener) => {
            tokio::spawn(accept(listener, questions, captures));
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
        // A daemon that lives is not talked over; what one left behind is cleared away.
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another daemon answers there",
            ));
        }
        std::fs::remove_file(path)?;
    }
    let listener = bind(path)?;
    // The umask may have taken away more than we wanted.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    Ok(listener)
}

/// Makes the socket so that its file was never open to all: the file takes its mode from the
/// socket's, which is set before (unix(7)).
fn bind(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(MODE))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket.into())
}

async fn accept(listener: UnixListener, questions: Questions, captures: Captures) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (questions, captures) = (questions.clone(), captures.clone());
                tokio::spawn(async move {
                    // Whoever is slow is nobody to report.
                    let talk = talk(stream, questions, &captures);
                    let talked = tokio::time::timeout(PATIENCE, talk).await;
                    drop(place);
                    if let Ok(Ok(Some((capture, stream)))) = talked {
                        // Nor is who has seen enough.
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

/// Answers one question; what is left to do where it was for a capture.
async fn talk(
    mut stream: UnixStream,
    questions: Questions,
    captures: &Captures,
) -> io::Result<Option<(Capture, UnixStream)>> {
    let mut line = Vec::new();
    BufReader::new(&mut stream)
        .take(MAX_REQUEST as u64)
        .read_until(b'\n', &mut line)
        .await?;
    let mut begun = None;
    let reply = match control::read_request(&line) {
        Ok(Ask::Capture(request)) => match capture(&stream, &questions, captures, &request).await {
            Ok(capture) => {
                begun = Some(capture);
                Reply::Capture {}
            }
            Err(text) => Reply::Error(text),
        },
        Ok(question) => ask(&questions, question).await.unwrap_or_else(stopping),
        Err(text) => Reply::Error(text),
    };
    let mut answer = serde_json::to_vec(&Answer { v: VERSION, reply })?;
    answer.push(b'\n');
    stream.write_all(&answer).await?;
    Ok(begun.map(|capture| (capture, stream)))
}

fn stopping() -> Reply {
    Reply::Error("the daemon is stopping".into())
}

async fn capture(
    stream: &UnixStream,
    questions: &Questions,
    captures: &Captures,
    request: &CaptureRequest,
) -> Result<Capture, String> {
    // The group may look at counters, not at what containers say to each other.
    let user = stream.peer_cred().map(|peer| peer.uid());
    let own = rustix::process::geteuid().as_raw();
    if !user.is_ok_and(|user| user == 0 || user == own) {
        return Err("only root and the daemon's own user may capture".into());
    }
    match ask(questions, Ask::Status).await.unwrap_or_else(stopping) {
        Reply::Status(status) => captures.begin(request, &status),
        Reply::Error(text) => Err(text),
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
