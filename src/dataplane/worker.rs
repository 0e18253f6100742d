//! One thread: wait, drain both directions, and again.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::DeviceGone;
use super::spin::Spin;
use super::stop::Stop;
use crate::dataplane::inbound::decap::Decap;
use crate::dataplane::outbound::encap::Encap;
use crate::sys::poll::{self, StopFlag};
use crate::sys::tun::TunQueue;

/// An idle worker makes a turn this often, so that one that makes none hangs.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A worker owns its queue, sockets and buffers; nothing of them is shared but the route
/// snapshot and the counters.
pub struct Worker {
    pub(super) tun: Arc<TunQueue>,
    pub(super) encap: Encap,
    pub(super) decap: Decap,
    pub(super) stop: Arc<Stop<StopFlag>>,
    pub(super) progress: Arc<AtomicU64>,
    pub(super) spin: Spin,
}

impl Worker {
    /// Runs until told to stop.
    ///
    /// # Errors
    /// When the device is gone for good.
    pub fn run(mut self) -> Result<(), DeviceGone> {
        let start = Instant::now();
        while !self.stop.is_set() {
            let [out, back] = self.wait(start)?;
            // Both have a budget, so that neither starves: bulk one way needs the
            // acknowledgements of the other.
            if out {
                self.encap.drain()?;
            }
            if back {
                self.decap.drain()?;
            }
            // A plain store: the watchdog only wants to see it move.
            let turns = self.progress.load(Ordering::Relaxed);
            self.progress
                .store(turns.wrapping_add(1), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits until there is something to do; says on which side.
    fn wait(&mut self, start: Instant) -> Result<[bool; 2], DeviceGone> {
        if let Some(sides) = self.poll(Some(Duration::ZERO))? {
            return Ok(sides);
        }
        let began = start.elapsed();
        let budget = self.spin.budget(began);
        let mut now = began;
        while now - began < budget {
            std::thread::yield_now();
            let back = start.elapsed();
            if !self.spin.yielded(back - now, back) {
                break;
            }
            now = back;
            if let Some(sides) = self.poll(Some(Duration::ZERO))? {
                self.spin.found();
                return Ok(sides);
            }
        }
        if !budget.is_zero() {
            self.spin.missed();
        }
        let sides = self.poll(Some(HEARTBEAT))?.unwrap_or_default();
        self.spin.slept(start.elapsed() - began);
        Ok(sides)
    }

    /// Which sides are readable; none when nothing is, not even the stop flag.
    fn poll(&self, timeout: Option<Duration>) -> Result<Option<[bool; 2]>, DeviceGone> {
        let descriptors = [
            self.tun.as_fd(),
            self.decap.socket().as_fd(),
            self.stop.wake().as_fd(),
        ];
        let [out, back, stop] = poll::wait_readable(descriptors, timeout).map_err(DeviceGone)?;
        Ok((out || back || stop).then_some([out, back]))
    }
}
