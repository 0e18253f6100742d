//! `state.json` in the state directory: what must survive a restart, even without the subnet
//! file.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::atomic_file;
use crate::subnet::lease::NodeId;
use crate::wire::{MacAddr, Vni};

const NAME: &str = "state.json";
/// Distinguishes this installation from clones of its machine.
const SECRET: &str = "instance";

/// This node's identity when the file was written. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) vtep_mac: MacAddr,
    pub(crate) subnet: Ipv4Net,
    pub(crate) public_ip: Ipv4Addr,
    pub(crate) network: Ipv4Net,
    pub(crate) vni: Vni,
    /// The installation and boot that wrote the file, as in the lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) instance: Option<NodeId>,
}

/// Why a state file was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("reading {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{} is damaged ({source}) and was moved to {}; this node's MAC and subnet are taken from \
         its lease, if there is one",
        path.display(), aside.display()
    )]
    Damaged {
        path: PathBuf,
        /// Where it is now.
        aside: PathBuf,
        source: serde_json::Error,
    },
}

pub(crate) fn path(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

/// Reads the state; `None` if there is none. A damaged file is moved aside.
pub(crate) fn load(directory: &Path) -> Result<Option<State>, StateError> {
    let path = path(directory);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StateError::Read { path, source }),
    };
    serde_json::from_slice(&text).map(Some).map_err(|source| {
        let aside = path.with_extension("json.damaged");
        // If it cannot be moved it will be overwritten, and the error names it.
        let _ = std::fs::rename(&path, &aside);
        StateError::Damaged {
            path,
            aside,
            source,
        }
    })
}

/// The secret of this installation, made if there is none. If it cannot be saved, the error has
/// one for this run.
pub(crate) fn secret(directory: &Path) -> Result<String, (String, io::Error)> {
    let path = directory.join(SECRET);
    let read = match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    let made = format!("{:032x}\n", rand::random::<u128>());
    match read.and_then(|()| atomic_file::write(&path, made.as_bytes(), 0o600)) {
        Ok(()) => Ok(made),
        Err(error) => Err((made, error)),
    }
}

/// Writes the state, readable by its owner only.
pub(super) fn save(directory: &Path, state: &State) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(state)?;
    text.push(b'\n');
    atomic_file::write(&path(directory), &text, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            subnet: "172.20.28.0/24".parse().unwrap(),
            public_ip: Ipv4Addr::new(10, 211, 55, 102),
            network: "172.20.0.0/16".parse().unwrap(),
            vni: Vni::DEFAULT,
            instance: Some(NodeId::of_instance("secret", "boot")),
        }
    }

    #[test]
    fn a_secret_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("lib/uvxlan");
        let made = secret(&inside).unwrap();
        assert_eq!(made.trim().len(), 32);
        assert_eq!(secret(&inside).unwrap(), made);
        let other = secret(directory.path()).unwrap();
        assert_ne!(other, made);
        std::fs::write(inside.join(SECRET), "").unwrap();
        assert_ne!(secret(&inside).unwrap(), made, "an empty file is none");
        let (_, error) = secret(Path::new("/proc/nowhere")).unwrap_err();
        assert!(!error.to_string().is_empty());
    }

    #[test]
    fn a_state_of_an_older_version_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let old = r#"{"vtep_mac":"02:00:00:00:00:01","subnet":"172.20.28.0/24","public_ip":"10.211.55.102","network":"172.20.0.0/16","vni":1}"#;
        std::fs::write(path(directory.path()), old).unwrap();
        let read = load(directory.path()).unwrap().unwrap();
        assert_eq!((read.subnet, read.instance), (state().subnet, None));
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("lib/uvxlan");
        assert_eq!(load(&inside).unwrap(), None);
        save(&inside, &state()).unwrap();
        assert_eq!(load(&inside).unwrap(), Some(state()));
    }

    #[test]
    fn a_damaged_file_is_moved_aside_and_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(path(directory.path()), "{\"vtep_mac\": \"02:00").unwrap();
        let error = load(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains("state.json") && error.contains("state.json.damaged"),
            "{error}"
        );
        assert_eq!(load(directory.path()).unwrap(), None);
        assert!(directory.path().join("state.json.damaged").exists());
    }
}
