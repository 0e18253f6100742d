//! Flags about files.

use super::FILE;
use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::parse::required;
use crate::daemon::options::{DEFAULT_CONTROL_SOCKET, DEFAULT_STATE_DIR, DEFAULT_SUBNET_FILE};

pub(crate) const FLAGS: &[Flag] = &[
    Flag::new(
        Group::Files,
        "subnet-file",
        "File to write subnet, MTU and masquerading to",
        |to, text| {
            to.subnet_file = required(text, FILE)?.into();
            Ok(())
        },
    )
    .value("FILE")
    .default(DEFAULT_SUBNET_FILE),
    Flag::new(
        Group::Files,
        "state-dir",
        "Directory of what must survive a restart",
        |to, text| {
            to.state_dir = required(text, "the path of a directory")?.into();
            Ok(())
        },
    )
    .value("DIR")
    .default(DEFAULT_STATE_DIR)
    .ours(),
    Flag::new(
        Group::Files,
        "control-socket",
        "Socket for asking the running daemon",
        |to, text| {
            to.control_socket = required(text, "the path of a socket")?.into();
            Ok(())
        },
    )
    .value("PATH")
    .default(DEFAULT_CONTROL_SOCKET)
    .ours()
    .details("Asked by uvxlan status, trace, ping and top. Owner and group may; nothing can be changed through it."),
];
