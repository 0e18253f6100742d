//! What a packet loop needs before its threads run: sockets, offloads, and the workers.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64};

use super::counters::Counters;
use super::inbound::decap::Decap;
use super::inbound::deliver::Deliverer;
use super::offloads::{self, MissingOffload, Offloads};
use super::outbound::encap::Encap;
use super::outbound::transmit::{Segmentation, Transmitter};
use super::peer_counters::PeerCounters;
use super::spin::Spin;
use super::stop::Stop;
use super::worker::{Worker, WorkerHandle};
use super::{DeviceGone, Options, checksum};
use crate::sys::poll::StopFlag;
use crate::sys::privileges::{self, PacketSyscalls, PrivilegeError};
use crate::sys::signals;
use crate::sys::tun::{Tun, TunOffload, TunQueue};
use crate::sys::udp::{PathMtuSocket, UdpSocket};

/// Source ports per worker: enough for receivers and routers to spread flows.
const SOURCE_PORTS: usize = 8;
/// Limit for all workers together.
const MAX_SOURCE_PORTS: usize = 64;

/// Why the packet loop did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The tunnel port is taken.
    #[error(
        "UDP port {port} on {address} is in use: another tunnel daemon, or a vxlan device of the \
         kernel, holds it; see `ss -lunp 'sport = :{port}'` and `ip -d link show type vxlan`"
    )]
    PortInUse {
        /// Address that could not be bound.
        address: Ipv4Addr,
        /// Port that could not be bound.
        port: u16,
    },
    /// A socket or thread could not be created.
    #[error("cannot {tried}: {source}")]
    Io {
        /// What was tried.
        tried: String,
        /// The error of the system.
        source: io::Error,
    },
}

/// The receiving socket of each worker, and the sending sockets that all workers share.
pub(super) type Sockets = (Vec<Arc<UdpSocket>>, Arc<[UdpSocket]>);

/// Opens all sockets. All receivers are bound before any worker reads, because each new one
/// changes how the kernel spreads datagrams over them.
pub(super) fn open_sockets(options: &Options, workers: usize) -> Result<Sockets, StartError> {
    let receivers: Vec<_> = (0..workers)
        .map(|_| open_receiver(options.receive).map(Arc::new))
        .collect::<Result<_, _>>()?;
    if options.ingress_policy.interface.is_some() {
        let reported = receivers.iter().try_for_each(|it| it.report_interface());
        reported.map_err(io_error("ask for the interface of received datagrams"))?;
    }
    let senders = open_senders(options, workers)?;
    Ok((receivers, senders))
}

fn open_receiver(address: SocketAddrV4) -> Result<UdpSocket, StartError> {
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

/// All workers send through the same sockets, so that a flow has the same source port on every
/// worker. Otherwise two hosts could move a flow for ever: the receiving host answers through
/// another worker, our kernel moves the flow to the TUN queue that the answer was written to,
/// its source port changes, and the other host's kernel does the same. Each move reorders.
fn open_senders(options: &Options, workers: usize) -> Result<Arc<[UdpSocket]>, StartError> {
    let count = (SOURCE_PORTS * workers).clamp(1, MAX_SOURCE_PORTS);
    (0..count)
        .map(|_| UdpSocket::sender(options.source))
        .collect::<Result<_, _>>()
        .map_err(cannot_send(options))
}

pub(super) fn source_ports(senders: &[UdpSocket]) -> Vec<u16> {
    let addresses = senders
        .iter()
        .filter_map(|sender| sender.local_address().ok());
    addresses.map(|address| address.port()).collect()
}

/// Which of the wanted offloads kernel and device support, and why the others are missing.
pub(super) fn choose_offloads(
    wanted: Offloads,
    tun: &Tun,
    senders: &[UdpSocket],
    receivers: &[Arc<UdpSocket>],
) -> (Offloads, Vec<MissingOffload>) {
    let (mut usable, mut missing) = match senders.first() {
        Some(sender) => offloads::probe_sockets(wanted, sender),
        None => (wanted, Vec::new()),
    };
    if usable.receive {
        usable.receive = receivers.iter().all(|socket| socket.enable_gro());
    }
    usable.read = tun.offload > TunOffload::None;
    if wanted.write && tun.supported == TunOffload::None {
        usable.write = false;
        missing.push(MissingOffload {
            part: "write",
            reason: "this kernel's TUN devices have no virtio-net header".into(),
        });
    }
    (usable, missing)
}

pub(super) fn new_stop() -> Result<Stop<StopFlag>, StartError> {
    let flag = StopFlag::new().map_err(io_error("create an event descriptor"))?;
    Ok(Stop::new(flag))
}

/// The seccomp filter of the workers, where this CPU has one.
pub(super) fn packet_syscalls() -> Option<PacketSyscalls> {
    PacketSyscalls::compile()
        .inspect_err(warn_not_confined)
        .ok()
}

/// What all workers have in common.
pub(super) struct Shared<'a> {
    pub(super) options: &'a Options,
    pub(super) senders: Arc<[UdpSocket]>,
    pub(super) offloads: Offloads,
    pub(super) vnet_hdr: bool,
    pub(super) tun_supports: TunOffload,
    pub(super) mtu: Arc<AtomicU16>,
    pub(super) stop: Arc<Stop<StopFlag>>,
    pub(super) syscalls: Option<PacketSyscalls>,
    pub(super) device_gone: Arc<dyn Fn(DeviceGone) + Send + Sync>,
}

impl Shared<'_> {
    /// Starts the worker of a queue.
    pub(super) fn spawn(
        &self,
        number: usize,
        queue: TunQueue,
        receiver: Arc<UdpSocket>,
    ) -> Result<WorkerHandle, StartError> {
        let counters = Arc::new(Counters::default());
        let peer_counters = Arc::new(PeerCounters::default());
        let turns = Arc::new(AtomicU64::new(0));
        let queue = Arc::new(queue);
        let worker = Worker {
            encap: self.encap(&queue, &counters, &peer_counters)?,
            decap: self.decap(&queue, receiver, &counters, &peer_counters),
            tun: queue,
            stop: Arc::clone(&self.stop),
            turns: Arc::clone(&turns),
            spin: Spin::new(self.options.tuning.spin),
        };
        let device_gone = Arc::clone(&self.device_gone);
        let syscalls = self.syscalls.clone();
        let thread = std::thread::Builder::new()
            .name(format!("uvxlan-{number}"))
            .spawn(move || {
                confine(number, syscalls.as_ref());
                if let Err(gone) = worker.run() {
                    device_gone(gone);
                }
            })
            .map_err(io_error("start a worker thread"))?;
        Ok(WorkerHandle::new(thread, counters, peer_counters, turns))
    }

    fn encap(
        &self,
        queue: &Arc<TunQueue>,
        counters: &Arc<Counters>,
        peer_counters: &Arc<PeerCounters>,
    ) -> Result<Encap, StartError> {
        let transmitter = Transmitter::new(
            Arc::clone(&self.senders),
            PathMtuSocket::new(self.options.source).map_err(cannot_send(self.options))?,
            Arc::clone(counters),
            if self.offloads.send {
                Segmentation::Kernel
            } else {
                Segmentation::Off
            },
            self.options.taps.observer(),
        );
        Ok(Encap::new(
            Arc::clone(queue),
            self.vnet_hdr,
            self.options,
            transmitter,
            Arc::clone(counters),
            Arc::clone(peer_counters),
        ))
    }

    fn decap(
        &self,
        queue: &Arc<TunQueue>,
        receiver: Arc<UdpSocket>,
        counters: &Arc<Counters>,
        peer_counters: &Arc<PeerCounters>,
    ) -> Decap {
        let deliverer = Deliverer::new(
            Arc::clone(queue),
            self.vnet_hdr,
            if self.offloads.write {
                self.tun_supports
            } else {
                TunOffload::None
            },
            Arc::clone(&self.mtu),
            checksum::checksummer(),
            Arc::clone(counters),
        );
        Decap::new(
            receiver,
            self.options,
            deliverer,
            Arc::clone(counters),
            Arc::clone(peer_counters),
        )
    }
}

/// Takes from the calling thread all privileges that moving packets does not need. Where the
/// kernel has no seccomp filters, the packet loop runs without.
fn confine(number: usize, syscalls: Option<&PacketSyscalls>) {
    if let Err(error) = signals::block_process_signals() {
        tracing::warn!(event = "not_confined", %error, "packet threads may receive signals");
    }
    let confined = match syscalls {
        Some(syscalls) => syscalls.confine_thread(),
        None => privileges::drop_capabilities_except(&[]),
    };
    match confined {
        // The others fail in the same way: one line is enough.
        Err(error) if number == 0 => warn_not_confined(&error),
        _ => {}
    }
}

fn warn_not_confined(error: &PrivilegeError) {
    tracing::warn!(
        event = "not_confined", %error,
        "packet threads keep more privileges than they need"
    );
}

fn cannot_send(options: &Options) -> impl FnOnce(io::Error) -> StartError {
    io_error(format!("send from {}", options.source))
}

fn io_error(tried: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    let tried = tried.into();
    move |source| StartError::Io { tried, source }
}
