//! `network.json` in the state directory: the network config, our lease and the peers as the
//! datastore had them last, so that a daemon that starts while it is away is no outage.
//!
//! What is read here is checked as a record of the store is, and the first complete list of
//! the store replaces it.

use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::atomic_file;
use super::state_file::State;
use crate::daemon::options::RunOptions;
use crate::subnet::key::SubnetKey;
use crate::subnet::lease::{LeaseAttrs, LeaseForm, VxlanData};
use crate::subnet::store::{Listing, Record, StoreIdentity};
use crate::subnet::validate::PeerRecord;
use crate::wire::{MacAddr, Vni};

const NAME: &str = "network.json";
/// Largest file that is read, and more than 65,536 peers take.
const MAX_BYTES: u64 = 16 << 20;
/// Peers that are remembered at most: as many as are accepted.
const MAX_PEERS: usize = 65_536;

/// A peer, in little room: subnet, public address, MAC, and the VNI where it names one.
type Peer = (Ipv4Net, Ipv4Addr, MacAddr, Option<Vni>);

/// What the store had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Which store.
    #[serde(rename = "place")]
    pub store: StoreIdentity,
    /// When it said so, in seconds since 1970.
    pub confirmed: u64,
    /// The network config, as found.
    pub config: String,
    /// Our subnet.
    pub subnet: Ipv4Net,
    /// The address that we published.
    pub public_ip: Ipv4Addr,
    /// Whether our lease has no time to live.
    pub reserved: bool,
    /// Whether values are written as flannel v0.11 writes them (etcd's v2 API).
    pub old_form: bool,
    /// The peers.
    peers: Vec<Peer>,
}

/// Seconds since 1970, for what a person reads and what must outlive a reboot.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

impl Remembered {
    /// What is to be remembered, as of now.
    #[must_use]
    pub fn new(
        store: StoreIdentity,
        config: String,
        state: &State,
        reserved: bool,
        form: LeaseForm,
    ) -> Self {
        Self {
            store,
            confirmed: now(),
            config,
            subnet: state.subnet,
            public_ip: state.public_ip,
            reserved,
            old_form: form == LeaseForm::V011,
            peers: Vec::new(),
        }
    }

    /// The same with these peers, as the store had them some time `ago`.
    pub fn confirm(
        &mut self,
        public_ip: Ipv4Addr,
        ago: Duration,
        peers: impl IntoIterator<Item = PeerRecord>,
    ) {
        let peers = peers.into_iter().take(MAX_PEERS);
        self.peers = peers
            .map(
                |PeerRecord {
                     subnet,
                     public_ip,
                     vxlan,
                     // The holder may be another by the time this is read: it is asked by
                     // ICMP until the store has said so again.
                     answers_probes: _,
                 }| { (subnet, public_ip, vxlan.vtep_mac, vxlan.vni) },
            )
            .collect();
        self.public_ip = public_ip;
        self.confirmed = now().saturating_sub(ago.as_secs());
    }

    /// How long ago the store said so, by the wall clock.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_secs(now().saturating_sub(self.confirmed))
    }

    /// The form of lease values.
    #[must_use]
    pub const fn form(&self) -> LeaseForm {
        match self.old_form {
            true => LeaseForm::V011,
            false => LeaseForm::Newest,
        }
    }

    /// Number of peers.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.peers.len()
    }

    /// The peers as a list of the store, from which a set of peers can begin.
    #[must_use]
    pub fn listing(&self) -> Listing {
        let records = self
            .peers
            .iter()
            .filter_map(|(subnet, public_ip, vtep_mac, vni)| {
                let data = VxlanData {
                    vni: *vni,
                    vtep_mac: *vtep_mac,
                };
                let attrs = LeaseAttrs::vxlan(*public_ip, data).ok()?;
                Some(Record {
                    name: SubnetKey::from(*subnet).to_string(),
                    value: Bytes::from(attrs.encode().ok()?),
                    revision: 0,
                    created: 0,
                    expires: true,
                })
            });
        Listing {
            records: records.collect(),
            revision: 0,
        }
    }

    /// Why this says nothing to a daemon with these options, that was this `state`, whose
    /// lease lives for `ttl` without it; `rebooted` when the host was since.
    fn unfit(&self, options: &RunOptions, state: &State, rebooted: bool) -> Option<String> {
        if !self.store.is_same(&options.store.identity()) {
            return Some("it is of another store".into());
        }
        if self.subnet != state.subnet || self.public_ip != state.public_ip {
            return Some("it is of another lease than the state file".into());
        }
        // While the host was off, its lease may have ended and the subnet been given away.
        // Containers of before are gone, so that waiting costs less than two owners.
        if rebooted && !self.reserved && self.age() >= options.lease_ttl {
            return Some("the host was rebooted, and our lease may have ended meanwhile".into());
        }
        None
    }
}

/// The file's path in a state directory.
#[must_use]
pub fn path(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

/// What can be gone on from where the store does not answer.
#[must_use]
pub fn find(options: &RunOptions, state: Option<&State>) -> Option<Remembered> {
    // It was asked to end.
    if options.fail_fast {
        return None;
    }
    let state = state?;
    let path = path(&options.state_dir);
    let found = match read(&path) {
        Ok(found) => found?,
        Err(error) => {
            let path = path.display();
            tracing::warn!(event = "not_remembered", %error, "{path} is of no use: a start needs the datastore");
            return None;
        }
    };
    // The subnet file lies in /run.
    let rebooted = !options.subnet_file.exists();
    match found.unfit(options, state, rebooted) {
        Some(reason) => {
            tracing::info!(
                event = "not_remembered",
                reason,
                "a start needs the datastore"
            );
            None
        }
        None => Some(found),
    }
}

fn read(path: &Path) -> io::Result<Option<Remembered>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is too large",
        ));
    }
    let found: Remembered = serde_json::from_slice(&text)?;
    Ok((found.peers.len() <= MAX_PEERS).then_some(found))
}

/// Writes the file, in one step, for root's eyes only.
///
/// # Errors
/// What the system says.
pub fn save(directory: &Path, remembered: &Remembered) -> io::Result<()> {
    let mut text = serde_json::to_vec(remembered)?;
    text.push(b'\n');
    atomic_file::write(&path(directory), &text, 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subnet::store::{StoreConfig, etcd::EtcdOptions};
    use crate::subnet::validate::{Context, check};

    fn state() -> State {
        State {
            vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            subnet: "10.5.7.0/24".parse().unwrap(),
            public_ip: Ipv4Addr::new(192, 0, 2, 1),
            network: "10.5.0.0/16".parse().unwrap(),
            vni: Vni::DEFAULT,
            instance: None,
        }
    }

    fn peer(number: u32) -> PeerRecord {
        let subnet = Ipv4Addr::from_bits(0x0a05_0000 + (number << 8));
        let [_, _, high, low] = number.to_be_bytes();
        PeerRecord {
            subnet: Ipv4Net::new_assert(subnet, 24),
            public_ip: Ipv4Addr::from_bits(0xc633_6400 + number),
            vxlan: VxlanData {
                vni: number.is_multiple_of(2).then_some(Vni::DEFAULT),
                vtep_mac: MacAddr([2, 0, 0, 1, high, low]),
            },
            answers_probes: false,
        }
    }

    fn options(directory: &Path) -> RunOptions {
        let subnet_file = directory.join("subnet.env");
        std::fs::write(&subnet_file, "").unwrap();
        RunOptions {
            state_dir: directory.into(),
            subnet_file,
            store: StoreConfig {
                etcd: EtcdOptions {
                    password: Some("geheim".into()),
                    ..EtcdOptions::default()
                },
                ..StoreConfig::default()
            },
            ..RunOptions::default()
        }
    }

    fn remembered(options: &RunOptions, peers: u32) -> Remembered {
        let store = options.store.identity();
        let mut made = Remembered::new(store, "{}".into(), &state(), false, LeaseForm::Newest);
        made.confirm(state().public_ip, Duration::ZERO, (0..peers).map(peer));
        made
    }

    #[test]
    fn what_is_saved_is_found_and_its_peers_are_records_again() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        assert_eq!(find(&options, Some(&state())), None);
        let saved = remembered(&options, 200);
        save(folder.path(), &saved).unwrap();
        let text = std::fs::read_to_string(path(folder.path())).unwrap();
        assert!(!text.contains("geheim"), "{text}");
        let start = r#"{"place":{"etcd":{"prefix":"/coreos.com/network","endpoints":["#;
        assert!(text.starts_with(start), "{text:.200}");
        let found = find(&options, Some(&state())).unwrap();
        assert_eq!(found, saved);
        let context = Context {
            network: state().network,
            vni: state().vni,
        };
        let records = found.listing().records.into_iter();
        let peers: Vec<_> = records
            .map(|record| check(&record.name, &record.value, &context).unwrap())
            .collect();
        assert_eq!(peers, (0..200).map(peer).collect::<Vec<_>>());
    }

    #[test]
    fn what_another_store_or_lease_said_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        save(folder.path(), &remembered(&options, 3)).unwrap();
        let found = |change: &dyn Fn(&mut RunOptions)| {
            let mut options = options.clone();
            change(&mut options);
            find(&options, Some(&state())).is_some()
        };
        assert!(found(&|_| {}));
        assert!(found(
            &|it| it.store.etcd.endpoints[0] = "http://192.0.2.9:2379".into()
        ));
        assert!(!found(
            &|it| it.store.etcd.endpoints = vec!["http://192.0.2.9:2379".into()]
        ));
        assert!(!found(&|it| it.store.etcd.prefix = "/other".into()));
        assert!(!found(&|it| it.store.directory = Some("/x".into())));
        assert!(!found(&|it| it.fail_fast = true));
        assert!(find(&options, None).is_none(), "nobody knows who we were");
        let moved = State {
            public_ip: Ipv4Addr::new(192, 0, 2, 2),
            ..state()
        };
        assert!(find(&options, Some(&moved)).is_none());
    }

    #[test]
    fn after_a_reboot_a_lease_that_may_have_ended_is_not_claimed() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        let mut old = remembered(&options, 3);
        old.confirmed -= 90_000;
        save(folder.path(), &old).unwrap();
        assert!(find(&options, Some(&state())).is_some(), "not rebooted");
        std::fs::remove_file(&options.subnet_file).unwrap();
        assert!(find(&options, Some(&state())).is_none());
        old.reserved = true;
        save(folder.path(), &old).unwrap();
        assert!(
            find(&options, Some(&state())).is_some(),
            "reserved for ever"
        );
        save(folder.path(), &remembered(&options, 3)).unwrap();
        assert!(find(&options, Some(&state())).is_some(), "just now");
    }

    #[test]
    fn a_damaged_or_endless_file_is_no_reason_not_to_start() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        save(folder.path(), &remembered(&options, MAX_PEERS as u32)).unwrap();
        let length = std::fs::metadata(path(folder.path())).unwrap().len();
        assert!(length < MAX_BYTES, "{length}");
        assert!(find(&options, Some(&state())).is_some());
        std::fs::write(path(folder.path()), "{\"place\"").unwrap();
        assert!(find(&options, Some(&state())).is_none());
        let file = std::fs::File::create(path(folder.path())).unwrap();
        file.set_len(1 << 40).unwrap();
        assert!(find(&options, Some(&state())).is_none());
    }
}
