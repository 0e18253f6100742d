//! What the checks judge: facts about this machine and the datastore, as they were found.
//! No check asks the system for more, so each can be tried with made-up facts.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

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

/// Everything that was looked at.
#[derive(Debug)]
pub struct Facts {
    /// The machine.
    pub machine: Machine,
    /// The daemon.
    pub daemon: Daemon,
    /// Links, addresses and routes.
    pub host: Host,
    /// Firewall rules.
    pub firewall: Firewall,
    /// Files of the daemon.
    pub files: Files,
    /// The datastore.
    pub store: Store,
    /// What asking the peers over the tunnel gave, or why they were not asked.
    pub reach: Result<Vec<Reach>, String>,
}

/// The machine itself.
#[derive(Debug)]
pub struct Machine {
    /// What opening `/dev/net/tun` gave.
    pub tun: io::Result<()>,
    /// Whether `CAP_NET_ADMIN` and `CAP_NET_RAW` are held; or why that is not known.
    pub capabilities: Result<(bool, bool), String>,
    /// The running kernel.
    pub kernel: Version,
    /// What this kernel takes in large pieces, and why not more; none where it could not be
    /// tried.
    pub offloads: Option<(Offloads, Vec<MissingOffload>)>,
    /// The number by which this machine signs its leases.
    pub node: Option<NodeId>,
    /// Values of `/proc/sys`, by path below it; those that do not exist are absent.
    pub sysctls: BTreeMap<String, String>,
}

/// Whether a daemon lives.
#[derive(Debug)]
pub enum Daemon {
    /// It answered.
    Answers(Box<Status>),
    /// One holds the device's name and does not answer, with what was tried; and its
    /// process, where it can be seen.
    Silent(String, Option<Holder>),
    /// There is none, with what was tried.
    Absent(String),
}

/// The network side of this host.
#[derive(Debug, Default)]
pub struct Host {
    /// Why links, addresses and routes could not be read.
    pub unread: Option<String>,
    /// Links by index.
    pub links: Vec<LinkInfo>,
    /// Addresses of all links.
    pub addresses: Vec<AddressInfo>,
    /// Main routing table.
    pub routes: Vec<Route>,
    /// Where the kernel sends packets to a host of each peer's subnet.
    pub lookups: BTreeMap<Ipv4Net, Option<RouteLookup>>,
    /// The interface to the other hosts, or why there is none.
    pub external: Option<Result<ExternalInterface, String>>,
    /// Who receives on the UDP port of the tunnels.
    pub holders: Vec<Holder>,
}

/// Firewall rules as the tools print them.
#[derive(Debug, Default)]
pub struct Firewall {
    /// `iptables-save`, or why not.
    pub iptables: Option<Result<String, String>>,
    /// `iptables-legacy-save`, where the kernel has tables of the older iptables and the other
    /// program does not print those.
    pub legacy: Option<Result<String, String>>,
    /// `nft -j list ruleset`, or why not.
    pub nft: Option<Result<String, String>>,
}

/// Files of the daemon.
#[derive(Debug)]
pub struct Files {
    /// Path of the subnet file.
    pub subnet_path: PathBuf,
    /// What it holds; `None` where there is none.
    pub subnet: io::Result<Option<Vec<u8>>>,
    /// Path of the state file.
    pub state_path: PathBuf,
    /// What it says; `None` where there is none.
    pub(crate) state: Result<Option<State>, String>,
}

/// The datastore.
#[derive(Debug, Default)]
pub struct Store {
    /// Kind and place, without secrets.
    pub place: String,
    /// Why the options cannot be meant; nothing was asked then.
    pub refused: Option<OptionsRefused>,
    /// The members of etcd, in the order given; none for a directory.
    pub members: Vec<Member>,
    /// The network config's text; the inner `None` where there is none.
    pub config: Option<Result<Option<Bytes>, String>>,
    /// Where a config that is not here lies instead.
    pub elsewhere: Option<&'static str>,
    /// The config, where it can be used.
    pub network: Option<NetworkConfig>,
    /// All records.
    pub listing: Option<Result<Listing, String>>,
    /// The peers that would be believed.
    pub peers: Vec<Peer>,
    /// Records that would not.
    pub refusals: Vec<RefusedRecord>,
}

/// Options of the store that cannot work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionsRefused {
    /// In words, with the remedy.
    pub text: String,
    /// Whether a file of TLS is at fault.
    pub tls: bool,
}

/// A member of etcd, asked for its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its URL.
    pub url: String,
    /// What came back.
    pub answer: Result<Answer, Trouble>,
}

/// What a member answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// How far its clock is off ours: its seconds less our seconds; none without a date.
    pub skew: Option<i64>,
}

/// Why a member did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// No connection, or none that speaks.
    Connection(String),
    /// It wants TLS, and the URL says http.
    WantsTls,
    /// TLS failed: the fault, and the error's own words.
    Tls(TlsFault, String),
}

/// What is wrong with a certificate, or with TLS as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFault {
    /// The member's certificate has expired.
    Expired,
    /// The member's certificate is not valid yet.
    NotYetValid,
    /// An authority that our CA file does not have signed it.
    UnknownAuthority,
    /// It is not for the name or address in the URL.
    WrongName,
    /// The member wants a certificate of ours.
    ClientWanted,
    /// The member refuses our certificate.
    ClientRefused,
    /// The URL says https, and the member speaks without TLS.
    NoTls,
    /// Our own files cannot be used.
    OurFiles,
    /// Anything else.
    Other,
}

/// A peer, as far as the checks need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Its address.
    pub public_ip: Ipv4Addr,
    /// Whether its packets go through the tunnel: not directly, and not nowhere.
    pub tunnel: bool,
}

/// What came of asking a peer by echo requests over the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Its address.
    pub public_ip: Ipv4Addr,
    /// The sizes tried, ascending.
    pub sizes: Vec<Size>,
    /// Largest inner packet that passes, in bytes, where not all sizes do.
    pub largest: Option<u32>,
    /// Whether anything came in from it meanwhile; looked at only where it answers nothing.
    pub heard: bool,
}

/// Requests of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Length of the inner packet in bytes, with its IPv4 header.
    pub bytes: u32,
    /// Whether one of some was answered.
    pub answered: bool,
}

impl Reach {
    /// Whether no request came back, of whatever size.
    #[must_use]
    pub fn answers_nothing(&self) -> bool {
        self.sizes.iter().all(|size| !size.answered)
    }

    /// The largest size that was answered, and the least that was not, where smaller ones
    /// pass and larger ones do not.
    #[must_use]
    pub fn limits(&self) -> Option<(u32, u32)> {
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
pub struct Served {
    /// The device.
    pub device: String,
    /// Our subnet.
    pub subnet: Ipv4Net,
    /// The overlay network.
    pub network: Ipv4Net,
    /// The published address.
    pub public_ip: Ipv4Addr,
    /// MTU of the device, where it is known.
    pub mtu: Option<u32>,
}

impl Facts {
    /// Whether a daemon lives, even if it does not answer.
    #[must_use]
    pub const fn alive(&self) -> bool {
        !matches!(self.daemon, Daemon::Absent(_))
    }

    /// Status of the daemon, if it answered.
    #[must_use]
    pub fn status(&self) -> Option<&Status> {
        match &self.daemon {
            Daemon::Answers(status) => Some(status),
            _ => None,
        }
    }

    /// The daemon's process, where it is known.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        match &self.daemon {
            Daemon::Answers(status) => Some(status.pid),
            Daemon::Silent(_, holder) => holder.as_ref()?.pid,
            Daemon::Absent(_) => None,
        }
    }

    /// What this node serves by the daemon's word, else by its state file.
    #[must_use]
    pub fn served(&self) -> Option<Served> {
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

    /// The device's MTU by the network config and the interface.
    fn wanted_mtu(&self) -> Option<u32> {
        let outer = match self.store.network.as_ref().and_then(|net| net.backend.mtu) {
            Some(mtu) => u32::from(mtu),
            None => self.external()?.mtu,
        };
        outer.min(65_535).checked_sub(u32::from(OVERHEAD))
    }

    /// Name of the overlay device.
    #[must_use]
    pub fn device_name(&self) -> String {
        let by_config = || {
            let vni = self.store.network.as_ref()?.backend.vni;
            Some(format!("flannel.{vni}"))
        };
        self.served()
            .map(|served| served.device)
            .or_else(by_config)
            .unwrap_or_else(|| "flannel.1".into())
    }

    /// The overlay device.
    #[must_use]
    pub fn device(&self) -> Option<&LinkInfo> {
        let name = self.device_name();
        self.host.links.iter().find(|link| link.name == name)
    }

    /// The interface to the other hosts.
    #[must_use]
    pub fn external(&self) -> Option<&ExternalInterface> {
        self.host.external.as_ref()?.as_ref().ok()
    }

    /// UDP port of the tunnels.
    #[must_use]
    pub fn port(&self) -> u16 {
        let node = self.status().and_then(|status| status.node.as_ref());
        node.map(|node| node.port)
            .or_else(|| Some(self.store.network.as_ref()?.backend.port))
            .unwrap_or(DEFAULT_PORT)
    }

    /// The peers: the daemon's, else those of the datastore.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        let Some(status) = self.status() else {
            return self.store.peers.clone();
        };
        status
            .peers
            .iter()
            .map(|peer| Peer {
                subnet: peer.subnet,
                public_ip: peer.public_ip,
                tunnel: peer.route == PeerRoute::Tunnel,
            })
            .collect()
    }

    /// A value of `/proc/sys`.
    #[must_use]
    pub fn sysctl(&self, path: &str) -> Option<&str> {
        self.machine.sysctls.get(path).map(String::as_str)
    }

    /// IPv4 addresses of a link.
    pub fn addresses_of(&self, index: u32) -> impl Iterator<Item = (Ipv4Addr, u8)> {
        self.host
            .addresses
            .iter()
            .filter(move |entry| entry.ifindex == index)
            .filter_map(|entry| match entry.address {
                IpAddr::V4(address) => Some((address, entry.prefix_len)),
                IpAddr::V6(_) => None,
            })
    }

    /// Bridges that have an address inside of `subnet`: the containers' own.
    pub fn bridges_in(&self, subnet: Ipv4Net) -> impl Iterator<Item = &LinkInfo> {
        self.host.links.iter().filter(move |link| {
            link.kind.as_deref() == Some("bridge")
                && self
                    .addresses_of(link.index)
                    .any(|(address, _)| subnet.contains(&address))
        })
    }

    /// Name of a link, or its number.
    #[must_use]
    pub fn link_name(&self, index: u32) -> String {
        let link = self.host.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("#{index}"), |link| link.name.clone())
    }
}

/// Longest time that one question to the daemon or to a member of etcd may take.
pub const PATIENCE: Duration = Duration::from_secs(3);
