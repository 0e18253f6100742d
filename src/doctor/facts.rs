//! What the checks judge: facts about this machine and the datastore. No check asks the system
//! for more, so each can be tested with invented facts.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use bytes::Bytes;
use ipnet::Ipv4Net;

use crate::control::{PeerRoute, RefusedRecord, Status};
use crate::daemon::state::state_file::State;
use crate::dataplane::offloads::{MissingOffload, Offloads};
use crate::host::interface::ExternalInterface;
use crate::host::netlink::{AddressInfo, LinkInfo, Route, RouteLookup};
use crate::host::port::Holder;
use crate::subnet::config::NetworkConfig;
use crate::subnet::lease::NodeId;
use crate::subnet::store::Listing;
use crate::sys::kernel::Version;
use crate::wire::vxlan::{DEFAULT_PORT, OVERHEAD};

/// Everything that was gathered.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) machine: MachineFacts,
    pub(crate) daemon: DaemonFacts,
    pub(crate) host: HostFacts,
    pub(crate) firewall: FirewallFacts,
    pub(crate) files: FileFacts,
    pub(crate) store: StoreFacts,
    /// Replies of the peers to echo requests through the tunnel, or why none were sent.
    pub(crate) reach: Result<Vec<Reachability>, String>,
}

/// The machine and its kernel.
#[derive(Debug)]
pub(crate) struct MachineFacts {
    /// The result of opening `/dev/net/tun`.
    pub(crate) tun: io::Result<()>,
    /// Whether this process has `CAP_NET_ADMIN` and `CAP_NET_RAW`, or why that is unknown.
    pub(crate) capabilities: Result<(bool, bool), String>,
    pub(crate) kernel: Version,
    /// The offloads this kernel supports and those it lacks; none if they could not be tried.
    pub(crate) offloads: Option<(Offloads, Vec<MissingOffload>)>,
    /// The id with which this machine marks its leases.
    pub(crate) node: Option<NodeId>,
    /// Values of `/proc/sys` by path below it; those that do not exist are absent.
    pub(crate) sysctls: BTreeMap<String, String>,
}

/// Whether a daemon runs.
#[derive(Debug)]
pub(crate) enum DaemonFacts {
    Answers(Box<Status>),
    /// A daemon holds the device's name but did not answer: the error, and its process if known.
    Silent(String, Option<Holder>),
    /// No daemon, with the error of the attempt to ask one.
    Absent(String),
}

/// Links, addresses and routes of this host.
#[derive(Debug, Default)]
pub(crate) struct HostFacts {
    /// Why links, addresses and routes could not be read.
    pub(crate) unread: Option<String>,
    pub(crate) links: Vec<LinkInfo>,
    pub(crate) addresses: Vec<AddressInfo>,
    /// The main routing table.
    pub(crate) routes: Vec<Route>,
    /// Where the kernel sends packets to a host in each peer's subnet.
    pub(crate) lookups: BTreeMap<Ipv4Net, Option<RouteLookup>>,
    /// The interface to the other hosts, or why there is none.
    pub(crate) external: Option<Result<ExternalInterface, String>>,
    /// Which sockets are bound to the UDP port of the tunnels.
    pub(crate) holders: Vec<Holder>,
}

/// Firewall rules as the tools print them, or why they could not be read.
#[derive(Debug, Default)]
pub(crate) struct FirewallFacts {
    /// `iptables-save`.
    pub(crate) iptables: Option<Result<String, String>>,
    /// `iptables-legacy-save`, if the kernel has legacy tables that `iptables-save` omits.
    pub(crate) legacy: Option<Result<String, String>>,
    /// `nft -j list ruleset`.
    pub(crate) nft: Option<Result<String, String>>,
}

/// Files of the daemon.
#[derive(Debug)]
pub(crate) struct FileFacts {
    pub(crate) subnet_path: PathBuf,
    /// Content of the subnet file; `None` if it does not exist.
    pub(crate) subnet: io::Result<Option<Vec<u8>>>,
    pub(crate) state_path: PathBuf,
    /// Content of the state file; `None` if it does not exist.
    pub(crate) state: Result<Option<State>, String>,
}

/// The datastore.
#[derive(Debug, Default)]
pub(crate) struct StoreFacts {
    /// Kind and location, without secrets.
    pub(crate) place: String,
    /// Why the options are unusable; nothing was asked then.
    pub(crate) refused: Option<OptionsRefused>,
    /// The members of etcd in the order given; none for a directory.
    pub(crate) members: Vec<Member>,
    /// Text of the network config; the inner `None` if there is none.
    pub(crate) config: Option<Result<Option<Bytes>, String>>,
    /// Where else a missing config was found.
    pub(crate) elsewhere: Option<&'static str>,
    /// The config, if it is usable.
    pub(crate) network: Option<NetworkConfig>,
    pub(crate) listing: Option<Result<Listing, String>>,
    /// The peers that a daemon would accept.
    pub(crate) peers: Vec<PeerFacts>,
    /// The records that it would refuse.
    pub(crate) refusals: Vec<RefusedRecord>,
}

/// Unusable options of the datastore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OptionsRefused {
    /// The reason, and what to do.
    pub(crate) text: String,
    /// Whether a TLS file is the problem.
    pub(crate) tls: bool,
}

/// A member of etcd that was asked for its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) url: String,
    pub(crate) reply: Result<MemberReply, MemberError>,
}

/// What a member of etcd replied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberReply {
    /// HTTP status.
    pub status: u16,
    /// How many seconds its clock is ahead of ours; none if it sent no date.
    pub skew: Option<i64>,
}

/// Why a member did not reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MemberError {
    /// No connection, or no HTTP on it.
    Connection(String),
    /// The URL says http, and the member wants TLS.
    WantsTls,
    /// TLS failed: the fault, and the error's text.
    Tls(TlsFault, String),
}

/// What is wrong with a certificate, or with TLS as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsFault {
    /// The member's certificate has expired.
    Expired,
    /// The member's certificate is not valid yet.
    NotYetValid,
    /// Our CA file does not contain the authority that signed it.
    UnknownAuthority,
    /// It was not issued for the name or address in the URL.
    WrongName,
    /// The member requires a client certificate.
    ClientWanted,
    /// The member refuses our certificate.
    ClientRefused,
    /// The URL says https, and the member does not use TLS.
    NoTls,
    /// Our own files are unusable.
    OurFiles,
    Other,
}

/// A peer, as far as the checks need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerFacts {
    pub(crate) subnet: Ipv4Net,
    pub(crate) public_ip: Ipv4Addr,
    /// Whether its packets go through the tunnel: not directly, and not nowhere.
    pub(crate) tunnel: bool,
}

/// How a peer replied to echo requests through the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reachability {
    pub(crate) subnet: Ipv4Net,
    pub(crate) public_ip: Ipv4Addr,
    /// Ascending.
    pub(crate) sizes: Vec<EchoSize>,
    /// Largest inner packet that passes, in bytes, if not all sizes do.
    pub(crate) largest: Option<u32>,
    /// Whether packets arrived from it meanwhile; only determined for a peer without replies.
    pub(crate) heard: bool,
}

/// Requests of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EchoSize {
    /// Length of the inner packet in bytes, with its IPv4 header.
    pub(crate) bytes: u32,
    /// Whether at least one was answered.
    pub(crate) answered: bool,
}

impl Reachability {
    /// Whether no request of any size was answered.
    pub(crate) fn is_mute(&self) -> bool {
        self.sizes.iter().all(|size| !size.answered)
    }

    /// The largest size that was answered and the smallest that was not, if small packets pass
    /// and large ones do not.
    pub(crate) fn limits(&self) -> Option<(u32, u32)> {
        let of = |answered| {
            self.sizes
                .iter()
                .filter(move |size| size.answered == answered)
                .map(|size| size.bytes)
        };
        let (good, bad) = (of(true).max()?, of(false).min()?);
        (good < bad).then_some((good, bad))
    }
}

/// What this node serves, or served last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) device: String,
    pub(crate) subnet: Ipv4Net,
    pub(crate) network: Ipv4Net,
    pub(crate) public_ip: Ipv4Addr,
    /// MTU of the device, if known.
    pub(crate) mtu: Option<u32>,
}

impl Facts {
    /// Whether a daemon runs, even if it does not answer.
    pub(crate) const fn daemon_runs(&self) -> bool {
        !matches!(self.daemon, DaemonFacts::Absent(_))
    }

    pub(crate) fn status(&self) -> Option<&Status> {
        match &self.daemon {
            DaemonFacts::Answers(status) => Some(status),
            _ => None,
        }
    }

    pub(crate) fn daemon_pid(&self) -> Option<u32> {
        match &self.daemon {
            DaemonFacts::Answers(status) => Some(status.pid),
            DaemonFacts::Silent(_, holder) => holder.as_ref()?.pid,
            DaemonFacts::Absent(_) => None,
        }
    }

    /// What this node serves according to the daemon, otherwise according to its state file.
    pub(crate) fn served(&self) -> Option<Served> {
        if let Some(node) = self.status().and_then(|status| status.node.as_ref()) {
            return Some(Served {
                device: node.device.clone(),
                subnet: node.subnet,
                network: node.network,
                public_ip: node.public_ip,
                mtu: Some(u32::from(node.mtu)),
            });
        }
        let state = self.files.state.as_ref().ok()?.as_ref()?;
        Some(Served {
            device: format!("flannel.{}", state.vni),
            subnet: state.subnet,
            network: state.network,
            public_ip: state.public_ip,
            mtu: self.wanted_mtu(),
        })
    }

    /// The device's MTU that follows from the network config and the interface.
    fn wanted_mtu(&self) -> Option<u32> {
        let outer = match self.store.network.as_ref().and_then(|net| net.backend.mtu) {
            Some(mtu) => u32::from(mtu),
            None => self.external()?.mtu,
        };
        outer.min(65_535).checked_sub(u32::from(OVERHEAD))
    }

    /// Name of the overlay device.
    pub(crate) fn device_name(&self) -> String {
        let by_config = || {
            let vni = self.store.network.as_ref()?.backend.vni;
            Some(format!("flannel.{vni}"))
        };
        self.served()
            .map(|served| served.device)
            .or_else(by_config)
            .unwrap_or_else(|| "flannel.1".into())
    }

    pub(crate) fn device(&self) -> Option<&LinkInfo> {
        let name = self.device_name();
        self.host.links.iter().find(|link| link.name == name)
    }

    pub(crate) fn external(&self) -> Option<&ExternalInterface> {
        self.host.external.as_ref()?.as_ref().ok()
    }

    /// UDP port of the tunnels.
    pub(crate) fn port(&self) -> u16 {
        let node = self.status().and_then(|status| status.node.as_ref());
        node.map(|node| node.port)
            .or_else(|| Some(self.store.network.as_ref()?.backend.port))
            .unwrap_or(DEFAULT_PORT)
    }

    /// The daemon's peers, otherwise those in the datastore.
    pub(crate) fn peers(&self) -> Vec<PeerFacts> {
        let Some(status) = self.status() else {
            return self.store.peers.clone();
        };
        status
            .peers
            .iter()
            .map(|peer| PeerFacts {
                subnet: peer.subnet,
                public_ip: peer.public_ip,
                tunnel: peer.route == PeerRoute::Tunnel,
            })
            .collect()
    }

    /// A value of `/proc/sys`.
    pub(crate) fn sysctl(&self, path: &str) -> Option<&str> {
        self.machine.sysctls.get(path).map(String::as_str)
    }

    /// IPv4 addresses of a link.
    pub(crate) fn addresses_of(&self, index: u32) -> impl Iterator<Item = (Ipv4Addr, u8)> {
        self.host
            .addresses
            .iter()
            .filter(move |entry| entry.ifindex == index)
            .filter_map(|entry| match entry.address {
                IpAddr::V4(address) => Some((address, entry.prefix_len)),
                IpAddr::V6(_) => None,
            })
    }

    /// Bridges with an address in `subnet`: those of the containers.
    pub(crate) fn bridges_in(&self, subnet: Ipv4Net) -> impl Iterator<Item = &LinkInfo> {
        self.host.links.iter().filter(move |link| {
            link.kind.as_deref() == Some("bridge")
                && self
                    .addresses_of(link.index)
                    .any(|(address, _)| subnet.contains(&address))
        })
    }

    /// Name of a link, or its index if there is no such link.
    pub(crate) fn link_name(&self, index: u32) -> String {
        let link = self.host.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("#{index}"), |link| link.name.clone())
    }

    /// The overlay device and the bridges of our subnet, as far as they exist.
    pub(crate) fn overlay_links(&self) -> Vec<String> {
        let mut links: Vec<_> = self.device().into_iter().collect();
        if let Some(served) = self.served() {
            links.extend(self.bridges_in(served.subnet));
        }
        links.into_iter().map(|link| link.name.clone()).collect()
    }
}
