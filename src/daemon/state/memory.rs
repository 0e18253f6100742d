//! A start from memory, and keeping the memory: [`Remembered`] is what it holds.
//!
//! A daemon is the data plane: killed and started again while the datastore is away, it must
//! forward as before. So it goes on from what it wrote down, says so, and lets the store's
//! first complete list, which the guard against mass deletion may hold, correct it.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::task::JoinHandle;

use crate::daemon::failure::Failure;
use crate::daemon::options::RunOptions;
use crate::daemon::start::identity::{self, MacOrigin, Traces};
use crate::daemon::state::offline_cache::{self, Remembered};
use crate::dataplane::inbound::header_checks::Vtep;
use crate::host::interface::ExternalInterface;
use crate::subnet::allocate::compatible;
use crate::subnet::config::NetworkConfig;
use crate::subnet::lease::{Lease, LeaseAttrs};
use crate::subnet::manager::{AcquireError, Acquired};
use crate::subnet::store::Store;
use crate::subnet::validate::PeerRecord;
use crate::wire::MacAddr;

/// How long a start waits for a store before it goes on from memory.
const PATIENCE: Duration = Duration::from_secs(5);
/// Least time between two writes of the file, and so much more for each peer.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(1));
/// After a change, so long until it is written: they come in bursts.
const SOON: Duration = Duration::from_millis(500);
/// Without any change, the file says this often that it is still true.
const REFRESH: Duration = Duration::from_secs(600);
/// Pause between two looks at the store's config.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Waits for what only the store can say: `None` where it does not, and there is a memory
/// to go on from.
///
/// # Errors
/// What the work ends with, where going on from memory cannot help.
pub async fn unless_remembered<T>(
    is_remembered: bool,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<Option<T>, Failure> {
    if !is_remembered {
        return work.await.map(Some);
    }
    tokio::select! {
        done = work => match done {
            // A password that was changed, a certificate that expired: no reason to stop
            // forwarding.
            Err(Failure::Store(error)) => {
                tracing::error!(event = "store_refuses", %error, "going on from memory");
                Ok(None)
            }
            other => other.map(Some),
        },
        () = tokio::time::sleep(PATIENCE) => Ok(None),
    }
}

/// Whether the memory fits a host that uses this interface, and this config.
#[must_use]
pub fn fits(memory: &Remembered, config: &NetworkConfig, external: &ExternalInterface) -> bool {
    memory.public_ip == external.public_ip
        && config.network.contains(&memory.subnet)
        && compatible(config, memory.subnet)
}

/// Our lease as it was. `attrs` makes its attributes for our MAC.
///
/// # Errors
/// When the attributes cannot be written.
pub fn lease(
    options: &RunOptions,
    config: &NetworkConfig,
    memory: &Remembered,
    traces: &Traces<'_>,
    attrs: impl FnOnce(MacAddr) -> Result<LeaseAttrs, Failure>,
) -> Result<(Vtep, Acquired), Failure> {
    let mut rng: StdRng = rand::make_rng();
    let (mac, origin) = identity::choose_mac(traces, config.backend.vni, rng.random());
    let attrs = attrs(mac)?;
    let value = attrs.encode_as(memory.form());
    let value = value.map_err(AcquireError::Encode)?.into();
    let age = memory.age();
    tracing::warn!(
        event = "from_memory", subnet = %memory.subnet, peers = memory.peers(),
        age_seconds = age.as_secs(), vtep_mac = %mac, mac_from = ?origin,
        "the datastore does not answer: going on with config, subnet and peers as they were, and \
         following it as soon as it answers"
    );
    if origin == MacOrigin::New {
        tracing::warn!(
            event = "from_memory",
            "our MAC is new: peers know another one until the datastore is back"
        );
    }
    let lease = Lease {
        subnet: memory.subnet,
        attrs,
        revision: 0,
        reserved: memory.reserved,
    };
    let acquired = Acquired {
        lease,
        value,
        ttl: options.lease_ttl,
        listing: memory.listing(),
    };
    let vni = config.backend.vni;
    Ok((Vtep { vni, mac }, acquired))
}

/// The file, kept while the daemon lives.
#[derive(Debug)]
pub struct Memory {
    directory: PathBuf,
    what: Remembered,
    due: Option<Instant>,
    written: Option<Instant>,
    writing: Option<JoinHandle<()>>,
    /// The daemon started from it, and the store has not said anything since.
    in_use: bool,
}

impl Memory {
    /// Of a daemon that knows this, from the store or, where `in_use`, from the file itself.
    #[must_use]
    pub fn new(directory: PathBuf, what: Remembered, in_use: bool) -> Self {
        Self {
            directory,
            what,
            due: (!in_use).then(Instant::now),
            written: None,
            writing: None,
            in_use,
        }
    }

    /// How old what is used is, where the store has not confirmed it since the start.
    #[must_use]
    pub fn age_in_use(&self) -> Option<Duration> {
        self.in_use.then(|| self.what.age())
    }

    /// The store has said something: what it says now is what counts. It may have another
    /// config by now, which is compared in the background.
    pub fn confirmed(&mut self, store: &Arc<dyn Store>) {
        if std::mem::replace(&mut self.in_use, false) {
            tracing::info!(
                event = "store_is_back",
                "the datastore answers: following it"
            );
            self.changed(Instant::now());
            let (store, config) = (Arc::clone(store), self.what.config.clone());
            tokio::spawn(compare(store, config));
        }
    }

    /// A peer, or our address, is not as it was.
    pub fn changed(&mut self, now: Instant) {
        if self.in_use {
            return;
        }
        let peers = u32::try_from(self.what.peers()).unwrap_or(u32::MAX);
        let pause = PAUSE.0 + PAUSE.1.saturating_mul(peers);
        let earliest = self.written.map_or(now, |written| written + pause);
        let due = earliest.max(now + SOON);
        self.due = Some(self.due.map_or(due, |known| known.min(due)));
    }

    /// When [`Memory::write`] is to be called next.
    #[must_use]
    pub const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Writes in the background what the store said `heard` ago.
    pub fn write(&mut self, public_ip: Ipv4Addr, heard: Duration, peers: Vec<PeerRecord>) {
        let now = Instant::now();
        if self
            .writing
            .as_ref()
            .is_some_and(|task| !task.is_finished())
        {
            self.due = Some(now + PAUSE.0);
            return;
        }
        self.what.confirm(public_ip, heard, peers);
        self.written = Some(now);
        self.due = Some(now + REFRESH);
        let (directory, what) = (self.directory.clone(), self.what.clone());
        self.writing = Some(tokio::task::spawn_blocking(move || save(&directory, &what)));
    }

    /// Writes at the end, unless the store has said nothing since the start.
    pub async fn close(mut self, public_ip: Ipv4Addr, heard: Duration, peers: Vec<PeerRecord>) {
        if let Some(task) = self.writing.take() {
            let _ = task.await;
        }
        if !self.in_use {
            self.what.confirm(public_ip, heard, peers);
            save(&self.directory, &self.what);
        }
    }
}

fn save(directory: &std::path::Path, what: &Remembered) {
    if let Err(error) = offline_cache::save(directory, what) {
        let path = offline_cache::path(directory);
        tracing::warn!(
            event = "not_remembered", %error, path = %path.display(),
            "a start without the datastore will not know the peers"
        );
    }
}

/// Says so where the store's config is not the one in use.
async fn compare(store: Arc<dyn Store>, used: String) {
    loop {
        match store.config().await {
            Ok(Some(config)) if config == used.as_bytes() => return,
            Ok(Some(_)) => {
                tracing::warn!(
                    event = "config_changed",
                    "the datastore's network config is not the one that was remembered and is in \
                     use: restart this service to follow it"
                );
                return;
            }
            Ok(None) => {
                tracing::warn!(
                    event = "config_gone",
                    "the datastore has no network config any more"
                );
                return;
            }
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}
