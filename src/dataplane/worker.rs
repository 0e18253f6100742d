//! One thread: wait, drain both directions, repeat.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::DeviceGone;
use super::counters::Counters;
use super::inbound::decap::Decap;
use super::outbound::encap::Encap;
use super::peer_counters::{PeerCounters, PeerTotals};
use super::spin::Spin;
use super::stop::Stop;
use crate::route::peer::PeerId;
use crate::sys::poll::{self, StopFlag};
use crate::sys::tun::TunQueue;

/// An idle worker goes round its loop this often, so that one that does not is known to hang.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Which directions have packets to read.
#[derive(Default)]
struct Readable {
    outbound: bool,
    inbound: bool,
}

/// A worker owns its queue, sockets and buffers. It shares only the route snapshot, the
/// counters and the sending sockets.
pub(super) struct Worker {
    pub(super) tun: Arc<TunQueue>,
    pub(super) encap: Encap,
    pub(super) decap: Decap,
    pub(super) stop: Arc<Stop<StopFlag>>,
    pub(super) turns: Arc<AtomicU64>,
    pub(super) spin: Spin,
}

impl Worker {
    /// Runs until it is told to stop, or the device is gone for good.
    pub(super) fn run(mut self) -> Result<(), DeviceGone> {
        let start = Instant::now();
        while !self.stop.is_set() {
            let readable = self.wait(start)?;
            // Both drains have a budget, so that neither direction starves: bulk traffic one
            // way needs the acknowledgements of the other.
            if readable.outbound {
                self.encap.drain()?;
            }
            if readable.inbound {
                self.decap.drain()?;
            }
            // A plain store is enough: the watchdog only wants to see the number change.
            let turns = self.turns.load(Ordering::Relaxed);
            self.turns.store(turns.wrapping_add(1), Ordering::Relaxed);
        }
        Ok(())
    }

    fn wait(&mut self, start: Instant) -> Result<Readable, DeviceGone> {
        if let Some(readable) = self.poll(Some(Duration::ZERO))? {
            return Ok(readable);
        }
        let began = start.elapsed();
        let budget = self.spin.budget(began);
        let mut now = began;
        while now - began < budget {
            std::thread::yield_now();
            let resumed = start.elapsed();
            if !self.spin.yielded(resumed - now, resumed) {
                break;
            }
            now = resumed;
            if let Some(readable) = self.poll(Some(Duration::ZERO))? {
                self.spin.hit();
                return Ok(readable);
            }
        }
        if !budget.is_zero() {
            self.spin.missed();
        }
        let readable = self.poll(Some(HEARTBEAT_INTERVAL))?.unwrap_or_default();
        self.spin.slept(start.elapsed() - began);
        Ok(readable)
    }

    /// `None` if nothing became readable, not even the stop flag.
    fn poll(&self, timeout: Option<Duration>) -> Result<Option<Readable>, DeviceGone> {
        let descriptors = [
            self.tun.as_fd(),
            self.decap.socket().as_fd(),
            self.stop.wake().as_fd(),
        ];
        let [outbound, inbound, stop] =
            poll::wait_readable(descriptors, timeout).map_err(DeviceGone)?;
        Ok((outbound || inbound || stop).then_some(Readable { outbound, inbound }))
    }
}

/// The control side's handle on a worker.
#[derive(Debug)]
pub(super) struct WorkerHandle {
    /// None once it was joined.
    thread: Option<JoinHandle<()>>,
    counters: Arc<Counters>,
    peer_counters: Arc<PeerCounters>,
    turns: Arc<AtomicU64>,
}

impl WorkerHandle {
    pub(super) fn new(
        thread: JoinHandle<()>,
        counters: Arc<Counters>,
        peer_counters: Arc<PeerCounters>,
        turns: Arc<AtomicU64>,
    ) -> Self {
        Self {
            thread: Some(thread),
            counters,
            peer_counters,
            turns,
        }
    }

    /// Waits for the end of the thread.
    pub(super) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic has been printed to stderr already.
            let _ = thread.join();
        }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn peer_totals(&self, peer: PeerId) -> PeerTotals {
        self.peer_counters.get(peer)
    }

    pub(super) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}
