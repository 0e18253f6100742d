//! The packet loop: plain threads, each with its own TUN queue and sockets.
//!
//! [`outbound`]: reads packets from the device, finds the peer, encapsulates, and sends in
//! batches. [`inbound`]: receives, checks headers and the [`ingress_policy`], merges segments
//! and writes to the device.
//! No packet changes threads, none waits for another, and a steady state allocates nothing.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod counters;
pub mod generation;
pub mod inbound;
pub mod ingress_policy;
pub mod offloads;
pub mod outbound;
pub mod peer_counters;
pub mod spin;
pub mod stop;
mod sync;
pub mod tap;
pub mod worker;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use counters::{Counter, Counters, Totals};
use inbound::decap::Decap;
use inbound::deliver::Deliverer;
use inbound::header_checks::LocalVtep;
use inbound::probes::{ProbeQueue, ProbeReceiver};
use ingress_policy::IngressPolicy;
use ingress_policy::socket_filter::SocketFilter;
use offloads::{MissingOffload, Offloads};
use outbound::encap::Encap;
use outbound::transmit::{Segmentation, Transmitter};
use peer_counters::{PeerCounters, PeerTotals};
use spin::Spin;
use stop::{Stop, Wake};
use tap::Taps;
use worker::Worker;

use crate::route::peer::PeerId;
use crate::route::publish::Routes;
use crate::route::table::RouteTable;
use crate::sys::poll::StopFlag;
use crate::sys::privileges::{self, PacketSyscalls, PrivilegeError};
use crate::sys::signals;
use crate::sys::statistics::{KernelDropCounters, Missed};
use crate::sys::tun::{Tun, TunOffload};
use crate::sys::udp::{PathMtuSocket, UdpSocket};
use crate::wire::flow;
use crate::wire::vxlan::EncapTemplate;

/// Source ports for each worker: enough for receivers and routers to spread flows.
const SOURCE_PORTS: usize = 8;
/// Source ports of all workers together at most.
const MAX_SOURCE_PORTS: usize = 64;

/// The TUN device cannot be used any more (deleted, or its descriptor is broken).
#[derive(Debug, thiserror::Error)]
#[error("the TUN device is gone: {0}")]
pub struct DeviceGone(pub io::Error);

/// Why the packet loop did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The tunnel port is taken.
    #[error(
        "UDP port {port} on {address} is in use: another tunnel daemon, or a vxlan device of the \
         kernel, holds it; see `ss -lunp 'sport = :{port}'` and `ip -d link show type vxlan`"
    )]
    PortInUse {
        /// Address of the attempt.
        address: Ipv4Addr,
        /// The port.
        port: u16,
    },
    /// A socket or thread could not be made.
    #[error("cannot {tried}: {source}")]
    Io {
        /// What was tried.
        tried: String,
        /// What came back.
        source: io::Error,
    },
}

/// How the packet loop does its work; each has a flag of `uvxlan run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// What to hand to the kernel in large pieces, if it takes them (`--offload`).
    pub offloads: Offloads,
    /// How long a worker polls for the next packet before it sleeps (`--spin`); see [`spin`].
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

/// What the packet loop is to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Our network and MAC.
    pub vtep: LocalVtep,
    /// MTU of the TUN device in bytes: what is longer must be cut before it fits.
    pub mtu: u16,
    /// Address from which datagrams are sent: the published one, or the interface's.
    pub source: Ipv4Addr,
    /// Where datagrams are received: wildcard or one address, and the tunnel port.
    pub receive: SocketAddrV4,
    /// Where packets go.
    pub routes: Routes,
    /// Who may send what.
    pub ingress_policy: IngressPolicy,
    /// How the work is done.
    pub tuning: Tuning,
    /// Who captures.
    pub taps: Taps,
    /// Where probes of peers go; without, they are frames like others that are not IPv4.
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
    threads: Vec<JoinHandle<()>>,
    gate: SocketFilter,
    kernel: KernelDropCounters,
    /// What it had counted when the packet loop started.
    missed_before: Missed,
    counters: Vec<Arc<Counters>>,
    peers: Vec<Arc<PeerCounters>>,
    progress: Vec<Arc<AtomicU64>>,
    offloads: Offloads,
    lacking: Vec<MissingOffload>,
    mtu: Arc<AtomicU16>,
    source_ports: Vec<u16>,
    probes: Option<Arc<ProbeQueue>>,
}

impl Dataplane {
    /// Starts one worker for each queue of the device. `ended` is called by a worker that
    /// ends before it was told to.
    ///
    /// # Errors
    /// [`StartError`] names what is missing; nothing keeps running then.
    pub fn start(
        tun: Tun,
        options: &Options,
        ended: impl Fn(DeviceGone) + Send + Sync + 'static,
    ) -> Result<Self, StartError> {
        let stop = Arc::new(Stop::new(
            StopFlag::new().map_err(io_error("make an event descriptor"))?,
        ));
        let ended = Arc::new(ended);
        // All receivers are bound before any worker reads: the kernel's spread over them
        // changes with each.
        let receivers: Vec<_> = tun
            .queues
            .iter()
            .map(|_| receiver(options.receive).map(Arc::new))
            .collect::<Result<_, _>>()?;
        if options.ingress_policy.interface.is_some() {
            let told = receivers.iter().try_for_each(|it| it.report_interface());
            told.map_err(io_error("ask over which interface datagrams come"))?;
        }
        let mut gate = SocketFilter::new(receivers.clone(), &options.ingress_policy);
        gate.lift(options.taps.is_outer_observed(), &options.routes.current());
        let senders = senders(options, receivers.len())?;
        let (mut offloads, mut lacking) = match senders.first() {
            Some(sender) => offloads::probe_sockets(options.tuning.offloads, sender),
            None => (options.tuning.offloads, Vec::new()),
        };
        if offloads.receive {
            let joined = receivers.iter().all(|socket| socket.enable_gro());
            offloads.receive = joined;
        }
        offloads.read = tun.offload > TunOffload::None;
        if options.tuning.offloads.write && tun.known == TunOffload::None {
            offloads.write = false;
            let reason = "this kernel's TUN devices have no virtio-net header".into();
            lacking.push(MissingOffload {
                part: "write",
                reason,
            });
        }
        let calls = packet_calls();
        let kernel = KernelDropCounters::open(&tun.name);
        let mut this = Self {
            stop,
            threads: Vec::new(),
            gate,
            missed_before: kernel.now(),
            kernel,
            counters: Vec::new(),
            peers: Vec::new(),
            progress: Vec::new(),
            offloads,
            lacking,
            mtu: Arc::new(AtomicU16::new(options.mtu)),
            source_ports: source_ports(&senders),
            probes: options.probes.clone(),
        };
        for (number, (queue, socket)) in tun.queues.into_iter().zip(receivers).enumerate() {
            let counters = Arc::new(Counters::default());
            let peers = Arc::new(PeerCounters::default());
            let progress = Arc::new(AtomicU64::new(0));
            let queue = Arc::new(queue);
            let transmitter = Transmitter::new(
                Arc::clone(&senders),
                PathMtuSocket::new(options.source).map_err(cannot_send(options))?,
                Arc::clone(&counters),
                if offloads.send {
                    Segmentation::Kernel
                } else {
                    Segmentation::Off
                },
                options.taps.observer(),
            );
            let template = EncapTemplate::ipv4(options.vtep.vni, options.vtep.mac);
            let worker = Worker {
                encap: Encap::new(
                    Arc::clone(&queue),
                    tun.vnet_hdr,
                    options.routes.reader(),
                    template,
                    transmitter,
                    Arc::clone(&counters),
                    Arc::clone(&peers),
                ),
                decap: Decap::new(
                    (socket, options.receive.port()),
                    options.vtep,
                    options.ingress_policy.clone(),
                    options.routes.reader(),
                    Deliverer::new(
                        Arc::clone(&queue),
                        tun.vnet_hdr,
                        if offloads.write {
                            tun.known
                        } else {
                            TunOffload::None
                        },
                        Arc::clone(&this.mtu),
                        checksum::checksummer(),
                        Arc::clone(&counters),
                    ),
                    Arc::clone(&counters),
                    Arc::clone(&peers),
                    options.taps.observer(),
                    options.probes.clone().map(ProbeReceiver::new),
                ),
                tun: queue,
                stop: Arc::clone(&this.stop),
                progress: Arc::clone(&progress),
                spin: Spin::new(options.tuning.spin),
            };
            let ended = Arc::clone(&ended);
            let calls = calls.clone();
            let thread = std::thread::Builder::new()
                .name(format!("uvxlan-{number}"))
                .spawn(move || {
                    confine(number, calls.as_ref());
                    if let Err(gone) = worker.run() {
                        ended(gone);
                    }
                })
                .map_err(io_error("start a worker thread"))?;
            this.threads.push(thread);
            this.counters.push(counters);
            this.peers.push(peers);
            this.progress.push(progress);
        }
        Ok(this)
    }

    /// Lets datagrams of this table's peers in, and, where the peer check is enforced, has
    /// the kernel drop all others. To be called before the table is published.
    pub fn admit(&mut self, table: &RouteTable) {
        self.gate.admit(table);
    }

    /// While somebody captures, lets strangers come as far as the workers, which drop them.
    pub fn set_filter_bypass(&mut self, shown: bool, table: &RouteTable) {
        self.gate.lift(shown, table);
    }

    /// Counters of all workers and sockets, added up, and what the kernel counted meanwhile.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let (missed, before) = (self.kernel.now(), self.missed_before);
        let totals = Totals::of(self.counters.iter().map(AsRef::as_ref))
            .with(Counter::SocketDrops, self.gate.drops())
            .with(
                Counter::SocketNoRoom,
                missed.sockets.saturating_sub(before.sockets),
            )
            .with(
                Counter::TunOverflow,
                missed.device.saturating_sub(before.device),
            );
        let probes = self.probes.iter().flat_map(|inbox| inbox.events());
        probes.fold(totals, |totals, (counter, amount)| {
            totals.with(counter, amount)
        })
    }

    /// Takes over what the sockets counted, which wraps: to be called now and then.
    pub fn count_kernel_drops(&self) {
        self.gate.drops();
    }

    /// What passed between this host and a peer, of all workers, since the packet loop
    /// started; its number may have been another peer's before.
    #[must_use]
    pub fn peer_totals(&self, peer: PeerId) -> PeerTotals {
        self.peers.iter().map(|worker| worker.get(peer)).sum()
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

    /// Tells the workers that the device has another MTU now.
    pub fn set_mtu(&self, mtu: u16) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.threads.len()
    }

    /// What is handed to the kernel in large pieces, and why the rest is not.
    #[must_use]
    pub fn offloads(&self) -> (Offloads, &[MissingOffload]) {
        (self.offloads, &self.lacking)
    }

    /// Turns of each worker so far. An idle worker makes one a second.
    #[must_use]
    pub fn progress(&self) -> Vec<u64> {
        self.progress
            .iter()
            .map(|turns| turns.load(Ordering::Relaxed))
            .collect()
    }

    /// Stops all workers and waits for them.
    pub fn stop(&mut self) {
        self.stop.set();
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so on stderr already.
            let _ = thread.join();
        }
        self.gate.close();
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The filter for the workers' system calls, where this processor has one.
fn packet_calls() -> Option<PacketSyscalls> {
    PacketSyscalls::compile().inspect_err(not_confined).ok()
}

/// Takes from the calling worker what moving packets does not need. A kernel without such
/// filters moves packets nonetheless.
fn confine(number: usize, calls: Option<&PacketSyscalls>) {
    if let Err(error) = signals::block_process_signals() {
        tracing::warn!(event = "not_confined", %error, "packet threads may be given signals");
    }
    let confined = match calls {
        Some(calls) => calls.confine_thread(),
        None => privileges::drop_capabilities_except(&[]),
    };
    match confined {
        // All of them fail alike: one line is enough.
        Err(error) if number == 0 => not_confined(&error),
        _ => {}
    }
}

fn not_confined(error: &PrivilegeError) {
    tracing::warn!(
        event = "not_confined", %error,
        "packet threads keep more privileges than they need"
    );
}

fn receiver(address: SocketAddrV4) -> Result<UdpSocket, StartError> {
    UdpSocket::receiver(address).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => StartError::PortInUse {
            address: *address.ip(),
            port: address.port(),
        },
        _ => StartError::Io {
            tried: format!("receive on UDP {address}"),
            source,
        },
    })
}

/// All workers send through the same sockets, so that the source port of a flow does not
/// depend on the worker it is on. If it did, the receiving host could answer through another
/// worker of its own, the kernel would move the flow to the TUN queue that the answer was
/// written to, its port would change, and so on for ever: reordered each time.
fn senders(options: &Options, workers: usize) -> Result<Arc<[UdpSocket]>, StartError> {
    let count = (SOURCE_PORTS * workers).clamp(1, MAX_SOURCE_PORTS);
    (0..count)
        .map(|_| UdpSocket::sender(options.source))
        .collect::<Result<_, _>>()
        .map_err(cannot_send(options))
}

fn source_ports(senders: &[UdpSocket]) -> Vec<u16> {
    let addresses = senders
        .iter()
        .filter_map(|sender| sender.local_address().ok());
    addresses.map(|address| address.port()).collect()
}

fn cannot_send(options: &Options) -> impl FnOnce(io::Error) -> StartError {
    io_error(format!("send from {}", options.source))
}

fn io_error(tried: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let tried = tried.into();
    move |source| StartError::Io { tried, source }
}
