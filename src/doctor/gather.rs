//! Gathers the facts about this machine, the daemon and the datastore. It changes nothing.

mod datastore;
mod member;
mod peers;

pub use member::read_head;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use caps::{CapSet, Capability};

use super::facts::{
    DaemonFacts, Facts, FileFacts, FirewallFacts, HostFacts, MachineFacts, OptionsRefused,
    StoreFacts,
};
use crate::control::client::{self, ClientError};
use crate::control::{self, Response, Status};
use crate::daemon::instance;
use crate::daemon::state::state_file;
use crate::dataplane::offloads;
use crate::firewall::command;
use crate::host::interface::{self, Selection};
use crate::host::netlink::{Netlink, NetlinkError};
use crate::host::port;
use crate::subnet::lease::NodeId;
use crate::subnet::store::StoreConfig;
use crate::subnet::store::etcd::EtcdOptionsError;
use crate::sys::kernel;

/// How long the daemon, or a member of etcd, may take for one reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);
/// Most peers whose route is looked up. The main table is read in any case.
const MAX_LOOKUPS: usize = 256;

/// What to examine.
pub(crate) struct Request {
    pub(crate) store: StoreConfig,
    /// How to find the interface to the other hosts.
    pub(crate) selection: Selection,
    pub(crate) subnet_file: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) control_socket: PathBuf,
}

/// Takes some seconds if something does not answer.
pub(crate) async fn facts(request: Request) -> Facts {
    let state = state(&request.state_dir);
    let files = FileFacts {
        subnet: present(fs::read(&request.subnet_file)),
        subnet_path: request.subnet_file,
        state_path: state_file::path(&request.state_dir),
        state,
    };
    let store = datastore::read(request.store).await;
    let mut facts = Facts {
        machine: machine(),
        daemon: DaemonFacts::Absent(String::new()),
        host: HostFacts::default(),
        firewall: FirewallFacts::default(),
        files,
        store,
        reach: Err(String::new()),
    };
    facts.daemon = daemon(request.control_socket.clone(), &facts).await;
    facts.host = match Netlink::connect() {
        Ok(netlink) => host(&netlink, &request.selection, &facts)
            .await
            .unwrap_or_else(unread),
        Err(error) => unread(error),
    };
    judge_records(&mut facts);
    if let Ok(netlink) = Netlink::connect() {
        for peer in facts.peers().into_iter().take(MAX_LOOKUPS) {
            let inside = Ipv4Addr::from_bits(peer.subnet.network().to_bits().wrapping_add(1));
            if let Ok(lookup) = netlink.route_get(inside).await {
                facts.host.lookups.insert(peer.subnet, lookup);
            }
        }
    }
    facts.host.holders = port::udp_holders(Ipv4Addr::UNSPECIFIED, facts.port());
    facts.machine.sysctls = sysctls(&facts);
    facts.firewall = firewall().await;
    facts.reach = peers::ping(&request.control_socket, &facts).await;
    facts
}

fn unread(error: NetlinkError) -> HostFacts {
    HostFacts {
        unread: Some(error.to_string()),
        ..HostFacts::default()
    }
}

/// The content of a file; `None` if it does not exist.
fn present(read: io::Result<Vec<u8>>) -> io::Result<Option<Vec<u8>>> {
    match read {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the state file. [`state_file::load`] would move a damaged one aside.
fn state(directory: &Path) -> Result<Option<state_file::State>, String> {
    let text = present(fs::read(state_file::path(directory))).map_err(|error| error.to_string())?;
    let read = text.map(|text| serde_json::from_slice(&text)).transpose();
    read.map_err(|error| error.to_string())
}

fn machine() -> MachineFacts {
    let held = caps::read(None, CapSet::Effective).map_err(|error| error.to_string());
    let has = |capability| held.as_ref().map(|set| set.contains(&capability));
    let capabilities = match (has(Capability::CAP_NET_ADMIN), has(Capability::CAP_NET_RAW)) {
        (Ok(admin), Ok(raw)) => Ok((admin, raw)),
        (Err(error), _) | (_, Err(error)) => Err(error.clone()),
    };
    // Opening it does not create a device yet.
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map(drop);
    let machine_id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    MachineFacts {
        tun,
        capabilities,
        kernel: kernel::version(),
        offloads: offloads::probe().ok(),
        node: NodeId::of_machine(&machine_id),
        sysctls: BTreeMap::new(),
    }
}

async fn daemon(socket: PathBuf, facts: &Facts) -> DaemonFacts {
    let asked = tokio::task::spawn_blocking(move || status(&socket)).await;
    let tried = match asked {
        Ok(Ok(status)) => return DaemonFacts::Answers(Box::new(status)),
        Ok(Err(tried)) => tried,
        Err(error) => error.to_string(),
    };
    let address = instance::address(&facts.device_name());
    match port::abstract_holder(&address) {
        Some(holder) => DaemonFacts::Silent(tried, Some(holder)),
        None => DaemonFacts::Absent(tried),
    }
}

fn status(socket: &Path) -> Result<Status, String> {
    match client::send_within(socket, control::Request::Status, REPLY_TIMEOUT) {
        Ok(Response::Status(status)) => Ok(*status),
        Ok(_) => Err("the daemon responded to another request than was sent".into()),
        Err(ClientError::NoDaemon { path, source }) => Err(format!("{}: {source}", path.display())),
        Err(error) => Err(error.to_string()),
    }
}

async fn host(
    netlink: &Netlink,
    given: &Selection,
    facts: &Facts,
) -> Result<HostFacts, NetlinkError> {
    let mut external = Err("nothing was tried".to_owned());
    for selection in selections(given, facts) {
        let snapshot = interface::snapshot(netlink, &selection).await?;
        external = interface::choose(&selection, &snapshot).map_err(|error| error.to_string());
        if external.is_ok() {
            break;
        }
    }
    Ok(HostFacts {
        unread: None,
        links: netlink.links().await?,
        addresses: netlink.addresses(None).await?,
        routes: netlink.routes().await?,
        lookups: BTreeMap::new(),
        external: Some(external),
        holders: Vec::new(),
    })
}

/// How to find the interface, to be tried in turn: as given; otherwise the daemon's; otherwise by
/// the address that was published last, then by the default route.
fn selections(given: &Selection, facts: &Facts) -> Vec<Selection> {
    let nothing = given.interfaces.is_empty()
        && given.patterns.is_empty()
        && given.can_reach.is_none()
        && given.public_ip.is_none();
    if !nothing {
        return vec![given.clone()];
    }
    let node = facts.status().and_then(|status| status.node.as_ref());
    if let Some(node) = node {
        return vec![Selection {
            interfaces: vec![node.interface.clone()],
            public_ip: Some(node.public_ip),
            ..Selection::default()
        }];
    }
    let published = facts.served().map(|served| Selection {
        public_ip: Some(served.public_ip),
        ..Selection::default()
    });
    published.into_iter().chain([given.clone()]).collect()
}

/// Sorts the records into peers and refused ones, now that our own lease is known.
fn judge_records(facts: &mut Facts) {
    let own_subnet = facts.served().map(|served| served.subnet);
    let own_ip = facts.external().map(|external| external.public_ip);
    let own_mac = match &facts.files.state {
        Ok(Some(state)) => Some(state.vtep_mac),
        _ => None,
    };
    datastore::sort_records(&mut facts.store, own_subnet, own_ip, own_mac);
}

fn sysctls(facts: &Facts) -> BTreeMap<String, String> {
    let mut paths = vec![
        "net/ipv4/ip_forward".to_owned(),
        "net/bridge/bridge-nf-call-iptables".to_owned(),
        "net/core/rmem_max".to_owned(),
        "net/core/wmem_max".to_owned(),
    ];
    let external = facts.external().map(|external| external.name.clone());
    let interfaces = facts
        .overlay_links()
        .into_iter()
        .chain(external)
        .chain(["all".to_owned()]);
    for interface in interfaces {
        for setting in ["forwarding", "rp_filter"] {
            paths.push(format!("net/ipv4/conf/{interface}/{setting}"));
        }
    }
    let read = |path: String| {
        let text = fs::read_to_string(Path::new("/proc/sys").join(&path)).ok()?;
        Some((path, text.trim().to_owned()))
    };
    paths.into_iter().filter_map(read).collect()
}

async fn firewall() -> FirewallFacts {
    let run = async |program: &'static str, arguments: &[&str]| {
        let output = command::run(program, arguments, "").await;
        Some(output.map_err(|error| error.to_string()))
    };
    // Without such tables the program is not run, because it might create them.
    let tables = fs::read_to_string("/proc/self/net/ip_tables_names").unwrap_or_default();
    let legacy = match tables.trim().is_empty() {
        true => None,
        false => run("iptables-legacy-save", &[]).await,
    };
    let iptables = run("iptables-save", &[]).await;
    FirewallFacts {
        // If iptables itself is the legacy one, iptables-save has printed them already.
        legacy: legacy.filter(|legacy| legacy.is_ok() && Some(legacy) != iptables.as_ref()),
        iptables,
        nft: run("nft", &["-j", "list", "ruleset"]).await,
    }
}

impl OptionsRefused {
    pub(crate) fn of(error: &EtcdOptionsError) -> Self {
        Self {
            text: error.to_string(),
            tls: error.is_about_tls(),
        }
    }
}

impl StoreFacts {
    fn refused(refused: OptionsRefused) -> Self {
        Self {
            refused: Some(refused),
            ..Self::default()
        }
    }
}
