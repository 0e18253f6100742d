//! The way in: from the tunnel port to the TUN device.

use std::sync::Arc;

use super::DeviceGone;
use super::checks::{self, Vtep};
use super::counters::{Counter, Counters};
use super::kernel_peer::{self, Unfinished};
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
    mtu: u16,
    batch: ReceiveBatch,
    counters: Arc<Counters>,
}

impl Decap {
    /// A way in from this socket to this queue, of a device with this MTU; `vnet_hdr`
    /// says whether its packets have that header.
    #[must_use]
    pub fn new(
        socket: UdpSocket,
        tun: Arc<TunQueue>,
        vnet_hdr: bool,
        vtep: Vtep,
        mtu: u16,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            socket,
            tun,
            vnet_len: if vnet_hdr { VNET_HDR_LEN } else { 0 },
            vtep,
            mtu,
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
        let end = info.start + info.len;
        let flat = info.segment.filter(|segment| {
            kernel_peer::is_flat(&self.batch.buffer()[info.start..end], *segment)
        });
        let step = match info.segment {
            Some(segment) if flat.is_none() => segment.max(1),
            _ => info.len.max(1),
        };
        let mut at = info.start;
        loop {
            let len = step.min(end - at);
            let opened = if info.truncated {
                Err(Counter::InTruncated)
            } else {
                self.open(at, len, info.tos, flat)
            };
            match opened {
                Ok(opened) => self.deliver(at + ENCAP_LEN, opened)?,
                Err(reason) => {
                    self.counters.add(Counter::UdpRead, 1);
                    self.counters.add(reason, 1);
                }
            }
            at += len;
            if at >= end {
                return Ok(());
            }
        }
    }

    /// Checks the frame at `at` and combines ECN.
    fn open(
        &mut self,
        at: usize,
        len: usize,
        outer_tos: u8,
        inner_segment: Option<usize>,
    ) -> Result<Opened, Counter> {
        let buffer = self.batch.buffer();
        let (opened, tos) = {
            let packet = checks::incoming(&self.vtep, &buffer[at..at + len])?;
            let opened = Opened {
                len: packet.total_len(),
                unfinished: kernel_peer::examine(&packet, self.mtu, inner_segment),
            };
            (opened, packet.tos())
        };
        match ecn::decapsulate(outer_tos, tos) {
            ecn::Decapsulated::Unchanged => {}
            ecn::Decapsulated::Drop => return Err(Counter::InEcn),
            ecn::Decapsulated::Set(codepoint) => {
                let header = &mut buffer[at + ENCAP_LEN..at + len];
                ipv4::set_tos(header, (tos & !ecn::MASK) | codepoint);
            }
        }
        Ok(opened)
    }

    /// Delivers the packet at `start`, and counts it as the packets that it stands for.
    fn deliver(&mut self, start: usize, opened: Opened) -> Result<(), DeviceGone> {
        let packets = opened.unfinished.map_or(1, |left| u64::from(left.segments));
        self.counters.add(Counter::UdpRead, packets);
        let outcome = match self.prepare(start, opened) {
            Ok(from) => self.write(from, start + opened.len)?,
            Err(reason) => reason,
        };
        self.counters.add(outcome, packets);
        Ok(())
    }

    /// Puts the virtio-net header before the packet, over the encapsulation, which has
    /// been read; returns where the bytes to write begin. An empty header says that the
    /// packet is complete: the kernel verifies what it delivers.
    fn prepare(&mut self, start: usize, opened: Opened) -> Result<usize, Counter> {
        let from = start - self.vnet_len;
        let (before, packet) =
            self.batch.buffer()[from..start + opened.len].split_at_mut(self.vnet_len);
        let Some(unfinished) = opened.unfinished else {
            before.fill(0);
            return Ok(from);
        };
        self.counters.add(
            if unfinished.is_super_packet() {
                Counter::SuperPackets
            } else {
                Counter::PartialChecksums
            },
            1,
        );
        if let Some(header) = before.first_chunk_mut() {
            *header = unfinished.hdr.to_bytes();
            unfinished.seed(packet);
        } else if unfinished.is_super_packet() {
            return Err(Counter::InUnsegmented);
        } else {
            unfinished.finish_checksum(packet);
        }
        Ok(from)
    }

    /// Writes to the device; returns the counter of what came of it.
    fn write(&mut self, from: usize, end: usize) -> Result<Counter, DeviceGone> {
        match self.tun.write(&self.batch.buffer()[from..end]) {
            Ok(_) => Ok(Counter::Delivered),
            Err(error) => match error.raw_os_error() {
                Some(libc::EBADFD) => Err(DeviceGone(error)),
                Some(libc::EIO) => Ok(Counter::InDeviceDown),
                _ => Ok(Counter::InWriteError),
            },
        }
    }
}

/// A frame that passed.
#[derive(Clone, Copy)]
struct Opened {
    /// Length of the inner packet.
    len: usize,
    /// What its sender left to do.
    unfinished: Option<Unfinished>,
}

#[cfg(test)]
mod tests;
