//! Writes the state file, and the subnet file that others read.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::atomic_file;
use super::state_file::{self, State};
use super::subnet_env::{self, SubnetFile};
use crate::daemon::failure::Failure;
use crate::daemon::options::RunOptions;

/// The paths of both files, and what they say of the options.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    state_dir: PathBuf,
    subnet_file: PathBuf,
    ip_masq: bool,
}

impl Files {
    pub(crate) fn new(options: &RunOptions) -> Self {
        Self {
            state_dir: options.state_dir.clone(),
            subnet_file: options.subnet_file.clone(),
            ip_masq: options.ip_masq,
        }
    }

    /// Which files cannot be written, judging by their folders. Changes nothing.
    pub(crate) fn unwritable(&self) -> Vec<Failure> {
        let state = state_file::path(&self.state_dir);
        let subnet = self.subnet_file.clone();
        let all = [
            ("state file", "state-dir", state),
            ("subnet file", "subnet-file", subnet),
        ];
        let failures = all.into_iter().filter_map(|(what, flag, path)| {
            let (folder, source) = obstacle(path.parent()?)?;
            Some(Failure::Unwritable {
                what,
                path,
                folder,
                flag,
                source,
            })
        });
        failures.collect()
    }

    /// Writes both, the state first: other programs wait for the subnet file.
    pub(crate) fn write(&self, state: &State, mtu: u16) -> Result<(), Failure> {
        self.save_state(state)?;
        let path = &self.subnet_file;
        atomic_file::write(path, self.text(state, mtu).as_bytes(), 0o644)
            .map_err(failed("write the subnet file", path.clone()))?;
        tracing::info!(
            event = "subnet_file",
            "Wrote subnet file to {}",
            path.display()
        );
        Ok(())
    }

    pub(crate) fn save_state(&self, state: &State) -> Result<(), Failure> {
        let path = state_file::path(&self.state_dir);
        state_file::save(&self.state_dir, state).map_err(failed("write the state file", path))
    }

    /// Writes the subnet file with another MTU, unless docker's options were written into it
    /// (`mk-docker-opts.sh -d` does that): docker would find none at its next start.
    pub(crate) fn rewrite_subnet_file(&self, state: &State, mtu: u16) -> Result<(), Failure> {
        let path = &self.subnet_file;
        let text = std::fs::read(path).unwrap_or_default();
        let foreign = subnet_env::env_lines(&text).any(|(key, _)| !key.starts_with("FLANNEL_"));
        if foreign {
            tracing::warn!(
                event = "subnet_file",
                "{} holds docker's options and is left unchanged: restart this service, then \
                 docker, to update its MTU",
                path.display()
            );
            return Ok(());
        }
        atomic_file::write(path, self.text(state, mtu).as_bytes(), 0o644)
            .map_err(failed("write the subnet file", path.clone()))
    }

    fn text(&self, state: &State, mtu: u16) -> String {
        let file = SubnetFile {
            network: state.network,
            subnet: state.subnet,
            mtu,
            ip_masq: self.ip_masq,
        };
        file.render()
    }
}

/// Why no file can be made in `folder`, or the folder itself: the folder that refuses, and its
/// error.
fn obstacle(folder: &Path) -> Option<(PathBuf, io::Error)> {
    // A relative path starts in the current folder.
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    let source = match std::fs::metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return obstacle(folder.parent()?),
        Err(error) => error,
        Ok(found) if !found.is_dir() => io::ErrorKind::NotADirectory.into(),
        Ok(_) => access(folder, Access::WRITE_OK | Access::EXEC_OK)
            .err()?
            .into(),
    };
    Some((folder.to_owned(), source))
}

fn failed(tried: &str, path: PathBuf) -> impl FnOnce(io::Error) -> Failure {
    let tried = format!("{tried} {}", path.display());
    move |source| Failure::File { tried, source }
}
