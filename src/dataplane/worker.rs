//! One thread: wait, drain both directions, and again.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::decap::Decap;
use super::encap::Encap;
use super::{DeviceGone, Stop};
use crate::sys::poll;
use crate::sys::tun::TunQueue;

/// A worker owns its queue, sockets and buffers; nothing of them is shared but the route
/// snapshot and the counters.
pub struct Worker {
    pub(super) tun: Arc<TunQueue>,
    pub(super) encap: Encap,
    pub(super) decap: Decap,
    pub(super) stop: Arc<Stop>,
    pub(super) progress: Arc<AtomicU64>,
}

impl Worker {
    /// Runs until told to stop.
    ///
    /// # Errors
    /// When the device is gone for good.
    pub fn run(mut self) -> Result<(), DeviceGone> {
        while !self.stop.is_set() {
            let descriptors = [
                self.tun.as_fd(),
                self.decap.socket().as_fd(),
                self.stop.as_fd(),
            ];
            let [out, back, _] = poll::wait_readable(descriptors, None).map_err(DeviceGone)?;
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
}
