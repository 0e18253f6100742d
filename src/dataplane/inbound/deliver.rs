//! Writes received packets to the TUN device: merged where the kernel accepts super-packets,
//! else one by one. Handles what the kernel refuses.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::dataplane::DeviceGone;
use crate::dataplane::counters::{Call, Counter, Counters};
use crate::dataplane::tap::{Direction, Observer};
use crate::offload::coalesce::{
    Coalescer, MAX_MEMBERS, PacketRef, Policy, Write, classify_partial,
};
use crate::offload::segment::{self, SegmentPlan};
use crate::sys::kernel::{self, Version};
use crate::sys::tun::{TunOffload, TunQueue};
use crate::wire::checksum::Checksummer;
use crate::wire::vnet_hdr::{self, VnetHdr};

/// Bytes that the caller leaves before each packet, for the virtio-net header.
pub const HEADROOM: usize = vnet_hdr::LEN;

/// Pieces of most writes: virtio-net header, header block, and payloads.
const FEW_PIECES: usize = 66;
const MANY_PIECES: usize = MAX_MEMBERS as usize + 2;
/// Longest header block of a segment that is cut here, for devices without virtio-net header.
const MAX_HEADER_LEN: usize = 256;

/// Writes the packets of a drain to a TUN queue.
pub struct Deliverer {
    tun: Arc<TunQueue>,
    vnet_hdr: bool,
    coalescer: Coalescer,
    mtu: Arc<AtomicU16>,
    counters: Arc<Counters>,
}

impl Deliverer {
    /// Writes to this queue. `vnet_hdr` tells whether the device has a virtio-net header,
    /// `offload` which super-packets it accepts. The MTU may change.
    #[must_use]
    pub fn new(
        tun: Arc<TunQueue>,
        vnet_hdr: bool,
        offload: TunOffload,
        mtu: Arc<AtomicU16>,
        checksummer: Checksummer,
        counters: Arc<Counters>,
    ) -> Self {
        let mut policy = Policy::new(usize::from(mtu.load(Ordering::Relaxed)), checksummer);
        policy.tcp = vnet_hdr && offload >= TunOffload::Tcp;
        policy.udp = vnet_hdr && offload >= TunOffload::TcpUdp;
        let kernel = kernel::version();
        // UDP_MAX_SEGMENTS was raised in 6.9.
        policy.udp_max_segments = if kernel >= Version(6, 9, 0) { 128 } else { 64 };
        // Before 6.8.5, tunnels inside of containers lost UDP super-packets.
        policy.spare_tunnel_ports = kernel < Version(6, 8, 5);
        Self {
            tun,
            vnet_hdr,
            coalescer: Coalescer::new(policy),
            mtu,
            counters,
        }
    }

    /// Queues a packet. It stays in `arena` until [`Deliverer::flush`].
    pub(super) fn push(&mut self, arena: &[u8], packet: PacketRef) {
        let queued = self.coalescer.push(arena, packet);
        debug_assert!(queued.is_ok(), "the caller's packets lie in its arena");
    }

    /// Queues a packet that must be written with this header.
    pub(super) fn push_whole(&mut self, arena: &[u8], packet: PacketRef, vnet: VnetHdr) {
        let queued = self.coalescer.push_whole(arena, packet, vnet);
        debug_assert!(queued.is_ok(), "the caller's packets lie in its arena");
    }

    /// Writes all queued packets, and counts those that could not be written. Overwrites
    /// [`HEADROOM`] bytes before each packet. Captures see what the device refuses.
    ///
    /// # Errors
    /// Only when the device is gone for good.
    pub(super) fn flush(
        &mut self,
        arena: &mut [u8],
        observer: &Observer,
    ) -> Result<(), DeviceGone> {
        if self.coalescer.is_empty() {
            return Ok(());
        }
        let mut policy = self.coalescer.policy();
        let sink = Sink {
            tun: &self.tun,
            vnet_hdr: self.vnet_hdr,
            counters: &self.counters,
            observer,
        };
        let mut result = Ok(());
        for write in self.coalescer.writes(arena) {
            if result.is_err() {
                // The device is gone, but every packet has to be counted.
                let packets = write.packet_count() as u64;
                self.counters.add(Counter::InDeviceDown, packets);
            } else if write.is_merged() {
                result = sink.write_merged(&write, arena, &mut policy);
            } else if let Some(packet) = write.packets().next() {
                result = sink.write_single(packet, write.vnet, arena, policy.checksummer);
            }
        }
        policy.tun_mtu = usize::from(self.mtu.load(Ordering::Relaxed));
        self.coalescer.set_policy(policy);
        self.coalescer.clear();
        result
    }
}

/// The device and the counters.
struct Sink<'a> {
    tun: &'a TunQueue,
    vnet_hdr: bool,
    counters: &'a Counters,
    observer: &'a Observer,
}

impl Sink<'_> {
    /// Writes a packet in place, with the virtio-net header in front of it.
    fn write_single(
        &self,
        packet: PacketRef,
        vnet: VnetHdr,
        arena: &mut [u8],
        checksummer: Checksummer,
    ) -> Result<(), DeviceGone> {
        let range = packet.range();
        if vnet.needs_csum() {
            self.counters.add(Counter::PartialChecksums, 1);
        }
        if !self.vnet_hdr {
            return self.write_finished(vnet, &mut arena[range], checksummer);
        }
        let start = range.start - HEADROOM;
        arena[start..range.start].copy_from_slice(&vnet.to_bytes());
        let bytes = range.len();
        let written = self.count_write(self.tun.write(&arena[start..range.end]), 1, bytes)?;
        self.report_drop(&arena[range], written);
        Ok(())
    }

    /// Computes checksums and cuts super-packets here, because without a virtio-net header they
    /// cannot be left to the kernel.
    fn write_finished(
        &self,
        vnet: VnetHdr,
        packet: &mut [u8],
        checksummer: Checksummer,
    ) -> Result<(), DeviceGone> {
        if !vnet.is_gso() {
            if segment::finish_checksum(&vnet, packet, checksummer).is_err() {
                self.counters.add(Counter::InMalformed, 1);
                self.report_drop(packet, Counter::InMalformed);
                return Ok(());
            }
            let written = self.count_write(self.tun.write(packet), 1, packet.len())?;
            self.report_drop(packet, written);
            return Ok(());
        }
        let plan = SegmentPlan::new(&vnet, packet)
            .ok()
            .filter(|plan| plan.header_len() <= MAX_HEADER_LEN);
        let Some(plan) = plan else {
            self.counters.add(Counter::InMalformed, 1);
            self.report_drop(packet, Counter::InMalformed);
            return Ok(());
        };
        // It was counted as one packet on receipt, but is delivered as several.
        self.counters.add(Counter::UdpRead, plan.count() as u64 - 1);
        let mut block = [0; MAX_HEADER_LEN];
        for number in 0..plan.count() {
            let Ok(payload) = plan.write_header(number, &mut block, checksummer) else {
                self.counters.add(Counter::InMalformed, 1);
                continue;
            };
            let bytes = plan.header_len() + payload.len();
            let pieces = [
                IoSlice::new(&block[..plan.header_len()]),
                IoSlice::new(&packet[payload]),
            ];
            self.count_write(self.tun.write_gather(&pieces), 1, bytes)
                .inspect_err(|_| {
                    let left = plan.count() - number - 1;
                    self.counters.add(Counter::InDeviceDown, left as u64);
                })?;
        }
        Ok(())
    }

    fn write_merged(
        &self,
        write: &Write<'_>,
        arena: &mut [u8],
        policy: &mut Policy,
    ) -> Result<(), DeviceGone> {
        let packets = write.packet_count();
        let written = if packets + 2 <= FEW_PIECES {
            self.gather::<FEW_PIECES>(write, arena)
        } else {
            self.gather::<MANY_PIECES>(write, arena)
        };
        match written {
            // Some kernels refuse valid super-packets (6.6.44, 6.1.103, 6.10). One by one it
            // works, and packets of this protocol are not merged any more.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.counters.add(Counter::MergeFallbacks, 1);
                let (merges, protocol) = match write.vnet.gso_type {
                    vnet_hdr::GSO_UDP_L4 => (&mut policy.udp, "UDP"),
                    _ => (&mut policy.tcp, "TCP"),
                };
                // More super-packets of this drain may follow; log only the first.
                if std::mem::take(merges) {
                    tracing::warn!(
                        event = "offload_fallback",
                        part = "write",
                        protocol,
                        "the kernel refused a merged packet; packets of this protocol are written one by one from now on"
                    );
                }
                for (number, packet) in write.packets().enumerate() {
                    let vnet = classify_partial(&arena[packet.range()], policy.tun_mtu);
                    self.write_single(packet, vnet, arena, policy.checksummer)
                        .inspect_err(|_| {
                            let left = packets - number - 1;
                            self.counters.add(Counter::InDeviceDown, left as u64);
                        })?;
                }
                Ok(())
            }
            written => {
                // Bytes are counted as if each packet had been written with its own header.
                let header = write.header.len();
                let bytes = written.as_ref().map_or(0, |written| {
                    (written + packets * header).saturating_sub(HEADROOM + header)
                });
                let written = self.count_write(written, packets as u64, bytes)?;
                if self.observer.is_active() {
                    for packet in write.packets() {
                        self.report_drop(&arena[packet.range()], written);
                    }
                }
                Ok(())
            }
        }
    }

    fn gather<const N: usize>(&self, write: &Write<'_>, arena: &[u8]) -> io::Result<usize> {
        let vnet = write.vnet.to_bytes();
        let mut pieces = [IoSlice::new(&[]); N];
        pieces[0] = IoSlice::new(&vnet);
        pieces[1] = IoSlice::new(write.header);
        let mut used = 2;
        for (slot, range) in pieces[2..].iter_mut().zip(write.pieces()) {
            *slot = IoSlice::new(&arena[range]);
            used += 1;
        }
        self.tun.write_gather(&pieces[..used])
    }

    /// Shows a packet to captures unless it was delivered. They have seen it before as one
    /// that was accepted.
    fn report_drop(&self, packet: &[u8], counter: Counter) {
        if counter != Counter::Delivered {
            self.observer
                .report_inner(Direction::In, packet, Some(counter));
        }
    }

    fn count_write(
        &self,
        written: io::Result<usize>,
        packets: u64,
        bytes: usize,
    ) -> Result<Counter, DeviceGone> {
        self.counters.add(Counter::WriteCalls, 1);
        let counter = match written {
            Ok(_) => {
                self.counters.add(Counter::DeliveredBytes, bytes as u64);
                self.counters.batch(Call::Write, packets);
                Counter::Delivered
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EBADFD) => {
                    self.counters.add(Counter::InDeviceDown, packets);
                    return Err(DeviceGone(error));
                }
                Some(libc::EIO) => Counter::InDeviceDown,
                _ => Counter::InWriteError,
            },
        };
        self.counters.add(counter, packets);
        Ok(counter)
    }
}
