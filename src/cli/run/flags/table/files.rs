//! Flags about files.

use super::{FILE, put};
use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::parse::required;
use crate::daemon::options::{DEFAULT_CONTROL_SOCKET, DEFAULT_STATE_DIR, DEFAULT_SUBNET_FILE};

pub(crate) const FLAGS: &[Flag] = &[
    Flag::new(
        Group::Files,
        "subnet-file",
        "File to write the subnet, the MTU and the masquerade setting to",
        |to, text| put(&mut to.subnet_file, required(text, FILE).map(Into::into)),
    )
    .value("FILE")
    .default(DEFAULT_SUBNET_FILE)
    .details("Docker and CNI plugins read it. It is written before systemd is told READY."),
    Flag::new(
        Group::Files,
        "state-dir",
        "Directory for what must survive a restart",
        |to, text| {
            let path = required(text, "the path of a directory");
            put(&mut to.state_dir, path.map(Into::into))
        },
    )
    .value("DIR")
    .default(DEFAULT_STATE_DIR)
    .ours()
    .details(
        "MAC and subnet (state.json), and the network config and peers as last read from the \
         datastore (network.json), to start from while the datastore is away.",
    ),
    Flag::new(
        Group::Files,
        "control-socket",
        "Unix socket on which the daemon answers questions",
        |to, text| {
            let path = required(text, "the path of a socket");
            put(&mut to.control_socket, path.map(Into::into))
        },
    )
    .value("PATH")
    .default(DEFAULT_CONTROL_SOCKET)
    .ours()
    .details(
        "uvxlan status, trace, ping, top and capture use it. It is open to the daemon's user and \
         group (capture: to root and the daemon's user), and nothing can be changed through it.",
    ),
];
