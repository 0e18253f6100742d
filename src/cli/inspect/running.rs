//! The options of the daemon that runs in this network namespace, for commands that were given
//! none: a person on a node does not have to repeat the flags and environment of its unit.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::cli::run::flannel_args::{self, Invocation};
use crate::daemon::instance;
use crate::daemon::options::RunOptions;
use crate::host::port;

/// The options of the daemon that runs here; none if there is no daemon or more than one, or if
/// its process cannot be read or trusted.
pub(crate) fn options() -> Option<&'static RunOptions> {
    static FOUND: OnceLock<Option<RunOptions>> = OnceLock::new();
    FOUND.get_or_init(find).as_ref()
}

fn find() -> Option<RunOptions> {
    let holders = port::abstract_holders(&instance::address(""));
    let [holder] = holders.as_slice() else {
        return None;
    };
    let process = PathBuf::from(format!("/proc/{}", holder.pid?));
    // Anybody may take a socket name that looks like a daemon's.
    let owner = fs::metadata(&process).ok()?.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return None;
    }
    let arguments = fs::read(process.join("cmdline")).ok()?;
    // Another user's environment cannot be read, but the flags can.
    let environment = fs::read(process.join("environ")).unwrap_or_default();
    let mut options = parse(&arguments, &environment)?;
    let directory = fs::read_link(process.join("cwd")).unwrap_or_default();
    make_absolute(&mut options, &directory);
    Some(options)
}

/// Reads command line and environment as `/proc` shows them: texts that each end with a NUL.
fn parse(arguments: &[u8], environment: &[u8]) -> Option<RunOptions> {
    let texts = |bytes: &[u8]| -> Vec<Vec<u8>> {
        let texts = bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec);
        let mut texts: Vec<_> = texts.collect();
        // Nothing follows the last NUL.
        texts.pop();
        texts
    };
    let mut arguments = texts(arguments).into_iter().skip(1).peekable();
    // A daemon called by flannel's name has no such word.
    let _ = arguments.next_if(|word| word == b"run");
    let environment = texts(environment).into_iter().filter_map(|entry| {
        let at = entry.iter().position(|byte| *byte == b'=')?;
        let (name, value) = entry.split_at(at);
        let value = value.get(1..)?.to_vec();
        Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value)))
    });
    match flannel_args::parse(arguments.map(OsString::from_vec), environment) {
        Ok(Invocation::Run(options)) => Some(*options),
        _ => None,
    }
}

/// Relative paths start where the daemon was started.
fn make_absolute(options: &mut RunOptions, directory: &Path) {
    options.store.make_absolute(directory);
    let paths = [
        &mut options.subnet_file,
        &mut options.state_dir,
        &mut options.control_socket,
    ];
    for path in paths {
        *path = directory.join(&*path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_override_the_environment_and_both_override_defaults() {
        let arguments = b"/usr/bin/uvxlan\0run\0--store=dir:leases\0-iface=eth1\0";
        let environment = b"FLANNELD_IFACE=eth0\0UVXLAN_STATE_DIR=/state\0HOME=/root\0";
        let mut options = parse(arguments, environment).unwrap();
        make_absolute(&mut options, Path::new("/srv"));
        assert_eq!(options.store.directory, Some("/srv/leases".into()));
        assert_eq!(options.iface, ["eth1"]);
        assert_eq!(options.state_dir, Path::new("/state"));
        assert_eq!(options.subnet_file, Path::new("/run/flannel/subnet.env"));
    }

    #[test]
    fn a_daemon_called_by_flannels_name_has_no_command_word() {
        let options = parse(b"flanneld\0--etcd-prefix=/net\0", b"").unwrap();
        assert_eq!(options.store.etcd.prefix, "/net");
        assert!(parse(b"uvxlan\0run\0--no-such-flag\0", b"").is_none());
    }
}
