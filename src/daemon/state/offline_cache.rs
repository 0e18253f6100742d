//! The offline cache, `network.json` in the state directory: the network config, our lease and
//! the peers as last read from the datastore. With it a daemon can start while the datastore is
//! down.
//!
//! Cached peers are validated as the datastore's records are, and replaced by its first
//! complete list.

mod writer;

use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

pub(crate) use self::writer::CacheWriter;
use super::atomic_file;
use super::state_file::State;
use crate::daemon::options::RunOptions;
use crate::subnet::key::SubnetKey;
use crate::subnet::lease::{LeaseAttrs, LeaseForm, VxlanData};
use crate::subnet::store::{Listing, Record, StoreIdentity};
use crate::subnet::validate::PeerRecord;
use crate::wire::{MacAddr, Vni};

const NAME: &str = "network.json";
/// Largest file that is read; [`MAX_PEERS`] take less.
const MAX_BYTES: u64 = 16 << 20;
/// As many peers as are accepted.
const MAX_PEERS: usize = 65_536;

/// A peer in short form: subnet, public address, MAC, and the VNI if it names one.
type Peer = (Ipv4Net, Ipv4Addr, MacAddr, Option<Vni>);

/// What the datastore had. The fields are the file's format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OfflineCache {
    /// The store that this was read from.
    #[serde(rename = "place")]
    store: StoreIdentity,
    /// When it was read, in seconds since 1970.
    confirmed: u64,
    /// The network config, as found.
    pub(crate) config: String,
    pub(crate) subnet: Ipv4Net,
    /// The address that we published.
    pub(crate) public_ip: Ipv4Addr,
    /// Whether our lease has no time to live.
    pub(crate) reserved: bool,
    /// Whether lease values have the form of flannel v0.11 (etcd's v2 API).
    old_form: bool,
    peers: Vec<Peer>,
}

/// Seconds since 1970: the age must outlive a reboot.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

impl OfflineCache {
    /// A cache without peers, as of now.
    pub(crate) fn new(
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

    /// Takes over our address and the peers, as the store had them some time `ago`.
    pub(crate) fn update(
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
                     // The lease may have another holder when this is read: it is probed by
                     // ICMP until the store has confirmed it.
                     answers_probes: _,
                 }| { (subnet, public_ip, vxlan.vtep_mac, vxlan.vni) },
            )
            .collect();
        self.public_ip = public_ip;
        self.confirmed = now().saturating_sub(ago.as_secs());
    }

    /// How long ago the store confirmed it, by the wall clock.
    pub(crate) fn age(&self) -> Duration {
        Duration::from_secs(now().saturating_sub(self.confirmed))
    }

    /// The form of lease values.
    pub(crate) const fn form(&self) -> LeaseForm {
        match self.old_form {
            true => LeaseForm::V011,
            false => LeaseForm::Newest,
        }
    }

    /// Number of peers.
    pub(crate) const fn peers(&self) -> usize {
        self.peers.len()
    }

    /// The peers as a list of the store.
    pub(crate) fn listing(&self) -> Listing {
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

    /// Why a daemon with these options and this `state` must not use it.
    fn unusable(
        &self,
        options: &RunOptions,
        state: &State,
        rebooted: bool,
    ) -> Option<&'static str> {
        if !self.store.is_same(&options.store.identity()) {
            return Some("it is of another store");
        }
        if self.subnet != state.subnet || self.public_ip != state.public_ip {
            return Some("it is of another lease than the state file");
        }
        // While the host was off, its lease may have expired and the subnet been given to
        // another host. Its old containers are gone, so waiting costs less than two owners.
        if rebooted && !self.reserved && self.age() >= options.lease_ttl {
            return Some("the host was rebooted, and our lease may have expired meanwhile");
        }
        None
    }

    /// Writes the file, readable by its owner only.
    pub(crate) fn save(&self, directory: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        atomic_file::write(&path(directory), &text, 0o600)
    }
}

fn path(directory: &Path) -> PathBuf {
    directory.join(NAME)
}

/// The cache, if a daemon with these options and this `state` can start from it.
pub(crate) fn load(options: &RunOptions, state: Option<&State>) -> Option<OfflineCache> {
    if options.fail_fast {
        return None;
    }
    let state = state?;
    let path = path(&options.state_dir);
    let cache = match read(&path) {
        Ok(cache) => cache?,
        Err(error) => {
            tracing::warn!(
                event = "offline_cache", %error, path = %path.display(),
                "cannot read the offline cache: a start needs the datastore"
            );
            return None;
        }
    };
    // The subnet file is in /run, which a reboot clears.
    let rebooted = !options.subnet_file.exists();
    match cache.unusable(options, state, rebooted) {
        Some(reason) => {
            tracing::info!(
                event = "offline_cache",
                reason,
                "cannot use the offline cache: a start needs the datastore"
            );
            None
        }
        None => Some(cache),
    }
}

fn read(path: &Path) -> io::Result<Option<OfflineCache>> {
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
    let cache: OfflineCache = serde_json::from_slice(&text)?;
    Ok((cache.peers.len() <= MAX_PEERS).then_some(cache))
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

    fn cache(options: &RunOptions, peers: u32) -> OfflineCache {
        let store = options.store.identity();
        let mut cache = OfflineCache::new(store, "{}".into(), &state(), false, LeaseForm::Newest);
        cache.update(state().public_ip, Duration::ZERO, (0..peers).map(peer));
        cache
    }

    #[test]
    fn a_saved_cache_is_loaded_and_its_peers_are_valid_records() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        assert_eq!(load(&options, Some(&state())), None);
        let saved = cache(&options, 200);
        saved.save(folder.path()).unwrap();
        let text = std::fs::read_to_string(path(folder.path())).unwrap();
        assert!(!text.contains("geheim"), "{text}");
        let start = r#"{"place":{"etcd":{"prefix":"/coreos.com/network","endpoints":["#;
        assert!(text.starts_with(start), "{text:.200}");
        let found = load(&options, Some(&state())).unwrap();
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
    fn a_cache_of_another_store_or_lease_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        cache(&options, 3).save(folder.path()).unwrap();
        let found = |change: &dyn Fn(&mut RunOptions)| {
            let mut options = options.clone();
            change(&mut options);
            load(&options, Some(&state())).is_some()
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
        assert!(load(&options, None).is_none(), "our identity is not known");
        let moved = State {
            public_ip: Ipv4Addr::new(192, 0, 2, 2),
            ..state()
        };
        assert!(load(&options, Some(&moved)).is_none());
    }

    #[test]
    fn after_a_reboot_a_lease_that_may_have_expired_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        let mut old = cache(&options, 3);
        old.confirmed -= 90_000;
        old.save(folder.path()).unwrap();
        assert!(load(&options, Some(&state())).is_some(), "not rebooted");
        std::fs::remove_file(&options.subnet_file).unwrap();
        assert!(load(&options, Some(&state())).is_none());
        old.reserved = true;
        old.save(folder.path()).unwrap();
        assert!(
            load(&options, Some(&state())).is_some(),
            "reserved for ever"
        );
        cache(&options, 3).save(folder.path()).unwrap();
        assert!(load(&options, Some(&state())).is_some(), "just now");
    }

    #[test]
    fn a_damaged_or_endless_file_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path());
        cache(&options, MAX_PEERS as u32)
            .save(folder.path())
            .unwrap();
        let length = std::fs::metadata(path(folder.path())).unwrap().len();
        assert!(length < MAX_BYTES, "{length}");
        assert!(load(&options, Some(&state())).is_some());
        std::fs::write(path(folder.path()), "{\"place\"").unwrap();
        assert!(load(&options, Some(&state())).is_none());
        let file = std::fs::File::create(path(folder.path())).unwrap();
        file.set_len(1 << 40).unwrap();
        assert!(load(&options, Some(&state())).is_none());
    }
}
