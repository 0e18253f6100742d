//! How commands reach the running daemon.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::running;
use crate::cli::{UNAVAILABLE, fail};
use crate::control::client::{self, ClientError};
use crate::control::{Request, Response, Status};
use crate::daemon::options::DEFAULT_CONTROL_SOCKET;

/// Where the daemon answers.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Socket {
    /// The daemon's control socket [default: that of the daemon running here]
    #[arg(long, env = "UVXLAN_CONTROL_SOCKET", value_name = "PATH")]
    control_socket: Option<PathBuf>,
}

impl Socket {
    pub(super) fn path(&self) -> &Path {
        if let Some(path) = &self.control_socket {
            return path;
        }
        match running::options() {
            Some(daemon) => &daemon.control_socket,
            None => Path::new(DEFAULT_CONTROL_SOCKET),
        }
    }

    pub(super) fn send(&self, request: Request) -> Result<Response, ClientError> {
        client::send(self.path(), request)
    }

    pub(super) fn status(&self) -> Result<Status, ClientError> {
        match self.send(Request::Status)? {
            Response::Status(status) => Ok(*status),
            _ => Err(wrong_response()),
        }
    }
}

pub(super) fn wrong_response() -> ClientError {
    ClientError::Refused("the daemon responded to another request than was sent".into())
}

/// Ends a command that got no response.
pub(super) fn unanswered(command: &str, error: &ClientError) -> ExitCode {
    fail(command, UNAVAILABLE, error)
}
