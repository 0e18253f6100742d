//! The packet loop: plain threads, each with its own TUN queue and sockets.
//!
//! [`outbound`] reads packets from the device, looks up the peer, encapsulates and sends in
//! batches. [`inbound`] receives, checks headers and the [`ingress_policy`], merges segments
//! and writes to the device. A packet stays on one thread, no thread waits for another, and
//! the loop allocates nothing in steady state.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod counters;
mod generation;
pub mod inbound;
pub mod ingress_policy;
pub mod offloads;
pub mod outbound;
pub mod peer_counters;
mod spin;
mod start;
mod stop;
mod sync;
pub mod tap;
mod worker;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use counters::{Counter, Totals};
use inbound::header_checks::LocalVtep;
use inbound::probes::ProbeQueue;
use ingress_policy::IngressPolicy;
use ingress_policy::socket_filter::SocketFilter;
use offloads::{MissingOffload, Offloads};
use peer_counters::PeerTotals;
use stop::{Stop, Wake};
use tap::Taps;
use worker::WorkerHandle;

use crate::route::peer::PeerId;
use crate::route::publish::Routes;
use crate::route::table::RouteTable;
use crate::sys::poll::StopFlag;
use crate::sys::statistics::{KernelDropCounters, KernelDrops};
use crate::sys::tun::Tun;
use crate::wire::flow;

pub use start::StartError;

/// The TUN device is unusable for good: deleted, or its descriptor is broken.
#[derive(Debug, thiserror::Error)]
#[error("the TUN device is gone: {0}")]
pub struct DeviceGone(pub io::Error);

/// Performance settings; each has a flag of `uvxlan run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Offloads to use where the kernel supports them (`--offload`).
    pub offloads: Offloads,
    /// How long a worker polls for the next packet before it sleeps (`--spin`).
    pub spin: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            offloads: Offloads::AUTO,
            spin: Duration::from_micros(100),
        }
    }
}

/// The settings of a packet loop.
#[derive(Debug, Clone)]
pub struct Options {
    /// The network and MAC address of this node.
    pub vtep: LocalVtep,
    /// MTU of the TUN device in bytes. Longer packets are segmented before they are written.
    pub mtu: u16,
    /// Source address of outer packets: the published one, or the interface's.
    pub source: Ipv4Addr,
    /// Where datagrams are received: wildcard or one address, and the tunnel port.
    pub receive: SocketAddrV4,
    /// The peers and their subnets.
    pub routes: Routes,
    /// Which senders and which inner addresses are accepted.
    pub ingress_policy: IngressPolicy,
    /// Performance settings.
    pub tuning: Tuning,
    /// Packet captures.
    pub taps: Taps,
    /// Receives the probes of peers. Without it they are dropped as frames that are not IPv4.
    pub probes: Option<Arc<ProbeQueue>>,
}

impl Wake for StopFlag {
    fn wake(&self) {
        self.set();
    }
}

/// A running packet loop. Dropping it stops it.
#[derive(Debug)]
pub struct Dataplane {
    stop: Arc<Stop<StopFlag>>,
    workers: Vec<WorkerHandle>,
    socket_filter: SocketFilter,
    kernel_drops: KernelDropCounters,
    /// What the kernel had counted when the packet loop started.
    kernel_drops_at_start: KernelDrops,
    offloads: Offloads,
    missing_offloads: Vec<MissingOffload>,
    mtu: Arc<AtomicU16>,
    source_ports: Vec<u16>,
    probes: Option<Arc<ProbeQueue>>,
}

impl Dataplane {
    /// Starts one worker for each queue of the device. A worker that has to give up because
    /// the device is gone calls `device_gone`.
    ///
    /// # Errors
    /// [`StartError`] names what failed; no thread is left running then.
    pub fn start(
        tun: Tun,
        options: &Options,
        device_gone: impl Fn(DeviceGone) + Send + Sync + 'static,
    ) -> Result<Self, StartError> {
        let (receivers, senders) = start::open_sockets(options, tun.queues.len())?;
        let (offloads, missing_offloads) =
            start::choose_offloads(options.tuning.offloads, &tun, &senders, &receivers);
        let mut socket_filter = SocketFilter::new(receivers.clone(), &options.ingress_policy);
        socket_filter.set_bypass(options.taps.is_outer_observed(), &options.routes.current());
        let kernel_drops = KernelDropCounters::open(&tun.name);
        let mut this = Self {
            stop: Arc::new(start::new_stop()?),
            workers: Vec::new(),
            socket_filter,
            kernel_drops_at_start: kernel_drops.now(),
            kernel_drops,
            offloads,
            missing_offloads,
            mtu: Arc::new(AtomicU16::new(options.mtu)),
            source_ports: start::source_ports(&senders),
            probes: options.probes.clone(),
        };
        let shared = start::Shared {
            options,
            senders,
            offloads,
            vnet_hdr: tun.vnet_hdr,
            tun_supports: tun.supported,
            mtu: Arc::clone(&this.mtu),
            stop: Arc::clone(&this.stop),
            syscalls: start::packet_syscalls(),
            device_gone: Arc::new(device_gone),
        };
        for (number, (queue, receiver)) in tun.queues.into_iter().zip(receivers).enumerate() {
            // On an error, dropping `this` stops the workers that run already.
            this.workers.push(shared.spawn(number, queue, receiver)?);
        }
        Ok(this)
    }

    /// Has the sockets accept datagrams from the peers of this table and, where the peer check
    /// is enforced, has the kernel drop all others. Call it before the table is published.
    pub fn admit_peers(&mut self, table: &RouteTable) {
        self.socket_filter.admit_peers(table);
    }

    /// Lets datagrams of unknown senders reach the workers, which drop them: a capture wants
    /// to see them.
    pub fn set_filter_bypass(&mut self, bypass: bool, table: &RouteTable) {
        self.socket_filter.set_bypass(bypass, table);
    }

    /// The counters of all workers and sockets added up, and the kernel's drops since the start.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let (now, start) = (self.kernel_drops.now(), self.kernel_drops_at_start);
        let totals = Totals::of(self.workers.iter().map(WorkerHandle::counters))
            .with(Counter::SocketDrops, self.socket_filter.drops())
            .with(
                Counter::SocketNoRoom,
                now.sockets.saturating_sub(start.sockets),
            )
            .with(
                Counter::TunOverflow,
                now.device.saturating_sub(start.device),
            );
        let probes = self.probes.iter().flat_map(|queue| queue.events());
        probes.fold(totals, |totals, (counter, amount)| {
            totals.with(counter, amount)
        })
    }

    /// Reads the sockets' drop counters, which wrap: call it at least once an hour.
    pub fn count_kernel_drops(&self) {
        self.socket_filter.drops();
    }

    /// Traffic with a peer since the packet loop started. A peer's number may have belonged to
    /// another peer before.
    #[must_use]
    pub fn peer_totals(&self, peer: PeerId) -> PeerTotals {
        let workers = self.workers.iter();
        workers.map(|worker| worker.peer_totals(peer)).sum()
    }

    /// The outer source port of packets whose inner flow has this hash.
    #[must_use]
    pub fn source_port(&self, flow: u32) -> Option<u16> {
        let bucket = flow::bucket(flow, self.source_ports.len());
        self.source_ports.get(bucket).copied()
    }

    /// Number of outer source ports.
    #[must_use]
    pub fn source_ports(&self) -> usize {
        self.source_ports.len()
    }

    /// Tells the workers the new MTU of the device.
    pub fn set_mtu(&self, mtu: u16) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The offloads in use, and why others are not.
    #[must_use]
    pub fn offloads(&self) -> (Offloads, &[MissingOffload]) {
        (self.offloads, &self.missing_offloads)
    }

    /// How often each worker has gone round its loop. An idle worker does so once a second.
    #[must_use]
    pub fn progress(&self) -> Vec<u64> {
        self.workers.iter().map(WorkerHandle::turns).collect()
    }

    /// Stops all workers and waits for them.
    pub fn stop(&mut self) {
        self.stop.set();
        for worker in &mut self.workers {
            worker.join();
        }
        self.socket_filter.close();
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.stop();
    }
}
