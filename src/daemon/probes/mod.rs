//! Probes each peer now and then: does it answer, what is the round trip, how much is lost and
//! in which direction, and how long may a packet be.
//!
//! Peers whose lease promises replies ([`crate::wire::probe`]) are probed inside of the tunnel,
//! with DF in the outer header, so a packet that needs fragmenting is lost. The lease is looked
//! up for each probe: none is sent to a peer that a kernel has taken over. All others are probed
//! by ICMP echo, from our overlay address to the network address of their subnet, which every
//! VTEP of flannel's and ours has on its device.

mod loss;
mod path;
mod peer;
mod prober;
mod replay_window;
mod round_trips;
mod schedule;
mod target;

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

pub(crate) use self::target::{Health, Method, Target};

use self::prober::Prober;
use self::schedule::Schedule;
use crate::control::Histogram;
use crate::dataplane::inbound::header_checks::LocalVtep;
use crate::dataplane::inbound::probes::ProbeQueue;
use crate::dataplane::tap::Observer;
use crate::route::publish::Routes;
use crate::subnet::manager::View;

/// The queue in which packet threads leave the peers' probes.
#[derive(Debug, Clone)]
pub(crate) struct Incoming {
    queue: Arc<ProbeQueue>,
    arrived: Arc<Notify>,
}

impl Incoming {
    /// `None` if probes are off: then those of peers are not answered either.
    pub(crate) fn new(interval: Duration) -> Option<Self> {
        let arrived = Arc::new(Notify::new());
        let wake = Arc::clone(&arrived);
        (!interval.is_zero()).then(|| Self {
            queue: Arc::new(ProbeQueue::new(move || wake.notify_one())),
            arrived,
        })
    }

    /// The packet threads' side.
    pub(crate) fn queue(&self) -> Arc<ProbeQueue> {
        Arc::clone(&self.queue)
    }
}

#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) vtep: LocalVtep,
    /// UDP port of the tunnels.
    pub(crate) port: u16,
    /// Our subnet's network address.
    pub(crate) own: Ipv4Addr,
    /// Address that datagrams are sent from.
    pub(crate) source: Ipv4Addr,
    /// MTU of the device.
    pub(crate) mtu: u16,
    /// Pause between two probes of a peer.
    pub(crate) interval: Duration,
    /// The published route table.
    pub(crate) routes: Routes,
    /// The leases as the datastore has them now.
    pub(crate) leases: View,
    /// Shows probes to captures.
    pub(crate) observer: Observer,
}

/// Running probes; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Probes(Option<(Arc<Shared>, JoinHandle<()>)>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    peers_changed: Notify,
}

#[derive(Debug)]
struct State {
    schedule: Schedule,
    source: Ipv4Addr,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic can leave it half written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        if let Some((_, task)) = self.0.take() {
            task.abort();
        }
    }
}

impl Probes {
    /// Probes from now on, unless probes are off.
    pub(crate) fn start(setup: Setup, incoming: Option<Incoming>) -> Self {
        let Some(incoming) = incoming else {
            return Self(None);
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                schedule: Schedule::new(rand::random(), setup.mtu, setup.interval),
                source: setup.source,
            }),
            peers_changed: Notify::new(),
        });
        let prober = Prober::new(setup, incoming, Arc::clone(&shared));
        Self(Some((shared, tokio::spawn(prober.run()))))
    }

    pub(crate) fn set_peers(&self, targets: &[Target]) {
        if let Some((shared, _)) = &self.0
            && shared.lock().schedule.set_peers(targets, Instant::now())
        {
            shared.peers_changed.notify_one();
        }
    }

    /// The device has another MTU.
    pub(crate) fn set_mtu(&self, mtu: u16) {
        if let Some((shared, _)) = &self.0 {
            shared.lock().schedule.set_mtu(mtu);
        }
    }

    /// Datagrams are sent from another address.
    pub(crate) fn set_source(&self, source: Ipv4Addr) {
        if let Some((shared, _)) = &self.0 {
            shared.lock().source = source;
        }
    }

    /// Round trips of all answered probes; `None` if probes are off.
    pub(crate) fn round_trips(&self) -> Option<Histogram> {
        let (shared, _) = self.0.as_ref()?;
        Some(shared.lock().schedule.round_trips().histogram())
    }

    /// What is known of a peer.
    pub(crate) fn health(&self, subnet: Ipv4Net) -> Option<Health> {
        let (shared, _) = self.0.as_ref()?;
        shared.lock().schedule.health(subnet)
    }
}
