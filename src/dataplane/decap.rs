//! The way in: from the tunnel port to the TUN device.

use std::sync::Arc;

use super::DeviceGone;
use super::checks::{self, Vtep};
use super::counters::{Counter, Counters};
use crate::sys::tun::{TunQueue, VNET_HDR_LEN};
use crate::sys::udp::{DatagramInfo, ReceiveBatch, UdpSocket};
use crate::wire::ecn;
use crate::wire::ipv4;
use crate::wire::vxlan::ENCAP_LEN;

/// Datagrams of one call; each slot holds the longest (64 KiB joined by the kernel, or a
/// kernel peer's unsegmented packet over a virtual link). Untouched pages cost nothing.
const SLOTS: usize = 32;
const SLOT_LEN: usize = 65_536;
/// Calls of one drain at most: then the other direction has its turn.
const DRAIN_CALLS: usize = 4;

/// The way in of one worker.
pub struct Decap {
    socket: UdpSocket,
    tun: Arc<TunQueue>,
    vnet_len: usize,
    vtep: Vtep,
    batch: ReceiveBatch,
    counters: Arc<Counters>,
}

impl Decap {
    /// A way in from this socket to this queue.
    #[must_use]
    pub fn new(
        socket: UdpSocket,
        tun: Arc<TunQueue>,
        vnet_hdr: bool,
        vtep: Vtep,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            socket,
            tun,
            vnet_len: if vnet_hdr { VNET_HDR_LEN } else { 0 },
            vtep,
            batch: ReceiveBatch::new(SLOTS, SLOT_LEN),
            counters,
        }
    }

    /// The socket to wait for.
    #[must_use]
    pub const fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Moves what is queued, up to a budget; returns whether there was anything.
    ///
    /// # Errors
    /// Only when the device is gone for good.
    pub fn drain(&mut self) -> Result<bool, DeviceGone> {
        let mut any = false;
        for _ in 0..DRAIN_CALLS {
            self.counters.add(Counter::ReceiveCalls, 1);
            let count = match self.batch.receive(&self.socket) {
                Ok(count) => count,
                // WouldBlock: empty. Anything else is the echo of a datagram that some
                // socket sent earlier, read and so cleared.
                Err(_) => break,
            };
            any |= count > 0;
            for slot in 0..count {
                self.deliver_datagram(self.batch.datagram(slot))?;
            }
            if count < self.batch.slots() {
                break;
            }
        }
        Ok(any)
    }

    /// Splits what the kernel joined, and delivers each part.
    fn deliver_datagram(&mut self, info: DatagramInfo) -> Result<(), DeviceGone> {
        let step = info.segment.unwrap_or(info.len).max(1);
        let end = info.start + info.len;
        let mut at = info.start;
        loop {
            let len = step.min(end - at);
            self.counters.add(Counter::UdpRead, 1);
            let verdict = if info.truncated {
                Err(Counter::InTruncated)
            } else {
                self.open(at, len, info.tos)
            };
            match verdict.map(|packet_len| self.write(at + ENCAP_LEN, packet_len)) {
                Ok(outcome) => outcome?,
                Err(reason) => self.counters.add(reason, 1),
            }
            at += len;
            if at >= end {
                return Ok(());
            }
        }
    }

    /// Checks the frame at `at` and combines ECN; returns the inner packet's length.
    fn open(&mut self, at: usize, len: usize, outer_tos: u8) -> Result<usize, Counter> {
        let buffer = self.batch.buffer();
        let (packet_len, tos) = {
            let packet = checks::incoming(&self.vtep, &buffer[at..at + len])?;
            (packet.total_len(), packet.tos())
        };
        match ecn::decapsulate(outer_tos, tos) {
            ecn::Decapsulated::Unchanged => {}
            ecn::Decapsulated::Drop => return Err(Counter::InEcn),
            ecn::Decapsulated::Set(codepoint) => {
                let header = &mut buffer[at + ENCAP_LEN..at + len];
                ipv4::set_tos(header, (tos & !ecn::MASK) | codepoint);
            }
        }
        Ok(packet_len)
    }

    /// Writes the packet at `start`. The encapsulation before it has been read and makes
    /// room for an empty virtio-net header: the kernel verifies what it delivers.
    fn write(&mut self, start: usize, len: usize) -> Result<(), DeviceGone> {
        let from = start - self.vnet_len;
        let buffer = self.batch.buffer();
        buffer[from..start].fill(0);
        match self.tun.write(&buffer[from..start + len]) {
            Ok(_) => self.counters.add(Counter::Delivered, 1),
            Err(error) => match error.raw_os_error() {
                Some(libc::EBADFD) => return Err(DeviceGone(error)),
                Some(libc::EIO) => self.counters.add(Counter::InDeviceDown, 1),
                _ => self.counters.add(Counter::InWriteError, 1),
            },
        }
        Ok(())
    }
}
