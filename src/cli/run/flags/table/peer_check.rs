//! Flags about which packets are accepted from the network.

use super::put;
use crate::cli::run::flags::{Flag, Group};
use crate::daemon::options::parse::{boolean, choice, network};
use crate::dataplane::ingress_policy::Enforcement;

pub(crate) const FLAGS: &[Flag] = &[
    Flag::new(
        Group::PeerCheck,
        "peer-check",
        "What to do with packets that no lease justifies: enforce, log, off",
        |to, text| {
            let words = [
                ("enforce", Enforcement::Enforce),
                ("log", Enforcement::Log),
                ("off", Enforcement::Off),
            ];
            put(&mut to.peer_check, choice(text, &words))
        },
    )
    .value("MODE")
    .default("enforce")
    .ours()
    .details(
        "A packet is accepted if its sender holds a lease, its inner source is in that lease's \
         subnet (or outside of the network, see --strict-sources), and its inner destination is \
         in this node's subnet. enforce drops all others. log counts them and lets them pass, for \
         peers that send from other addresses than they publish.",
    ),
    Flag::new(
        Group::PeerCheck,
        "socket-filter",
        "Whether the kernel drops packets of unknown senders at the socket: auto, off",
        |to, text| {
            let words = [("auto", true), ("off", false)];
            put(&mut to.socket_filter, choice(text, &words))
        },
    )
    .value("MODE")
    .default("auto")
    .ours()
    .details(
        "auto installs the filter with --peer-check=enforce and at most a few hundred peers. What \
         it drops is counted as socket_drops, not by reason.",
    ),
    Flag::new(
        Group::PeerCheck,
        "allow-peer",
        "Accept packets from this address or network without a lease",
        |to, text| {
            to.allow_peer.push(network(text)?);
            Ok(())
        },
    )
    .repeated("CIDR")
    .ours(),
    Flag::new(
        Group::PeerCheck,
        "forward-extra",
        "Let peers send to this network as well as to this node's subnet",
        |to, text| {
            to.forward_extra.push(network(text)?);
            Ok(())
        },
    )
    .repeated("CIDR")
    .ours(),
    Flag::new(
        Group::PeerCheck,
        "strict-sources",
        "Also reject inner sources outside of the network",
        |to, text| put(&mut to.strict_sources, boolean(text)),
    )
    .ours(),
];
